"""What a family's file tells of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields


def as_it_is(tensor: TensorInfo, part: str, description: ModelDescription) -> TensorInfo:
    """The tensor of a converter that changes nothing."""
    return tensor


def unchanged(tensor: TensorInfo) -> TensorInfo:
    """The tensor where it lies as it should."""
    return tensor


def own_name(name: str) -> str | None:
    """The name of a tensor that has the common one."""
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFFamily:
    """How a family's GGUF files are read. Facts are those of llama.cpp's converter.

    Attributes:
        architecture: general.architecture.
        describe: the description by the file's metadata and the tensors that it has.
        names: parts of tensors' names, where they differ from gguf_fields.PARTS: the part as in
            "blk.N.PART.weight" -> as in "model.layers.N.PART.weight"; None leaves it aside.
        top_names: whole names of tensors outside the layers -> common ones, None as before.
        adjusted: what must be done with a tensor (its common name is in it; its part's name in the
            file follows) because the converter permuted or folded something.
    """

    architecture: str
    describe: Callable[[GGUFSource], ModelDescription]
    names: Mapping[str, str | None] = field(default_factory=dict)
    top_names: Mapping[str, str | None] = field(default_factory=dict)
    adjusted: Callable[[TensorInfo, str, ModelDescription], TensorInfo] = as_it_is


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family.

    Attributes:
        model_type: of its config.json.
        describe: the description by its config.json.
        text_of: model types of text and more whose text_config is of this family, unless that
            names another itself.
        common_name: the common name of a tensor in its safetensors files; None leaves it aside.
            (What holds for all families is in huggingface_config.tensors.)
        adjusted: what must be done with a tensor of its safetensors files, under its common name,
            because it lies otherwise.
        gguf: None where the files have another family's architecture, or there are none.
    """

    model_type: str
    describe: Callable[[Fields], ModelDescription]
    text_of: tuple[str, ...] = ()
    common_name: Callable[[str], str | None] = own_name
    adjusted: Callable[[TensorInfo], TensorInfo] = unchanged
    gguf: GGUFFamily | None = None
