"""What GGUF metadata says of a model, and its tensor names translated to the common ones.

How families differ stands in loire.checkpoint.families.
"""

import re
from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.expert_tensors import taken_apart
from loire.checkpoint.families.family import GGUFFamily
from loire.checkpoint.families.gguf_fields import PARTS, TOP, GGUFSource
from loire.checkpoint.families.registry import BY_ARCHITECTURE
from loire.checkpoint.gguf_file import GGUFFile

END_OF_TURN = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>"),
        *("<|calls|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>"),
        *("<end_of_utterance>", "<turn|>", "<|tool_response>"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
)
"""Names of tokens that end an answer, whatever the file says of them (after llama-vocab.cpp)."""
PLAIN_ENDS = frozenset(("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~["))
"""Names that end one only where they are no text: vocabularies of code have such words."""
CONTROL, USER_DEFINED = 3, 4
"""Values of tokenizer.ggml.token_type."""


def describe(file: GGUFFile) -> ModelDescription:
    """The description of a GGUF model. Raises UnsupportedModelError for another family."""
    source = GGUFSource.of(file)
    family = _family(source)
    return replace(family.describe(source), eos_token_ids=end_tokens(file.metadata))


def _family(source: GGUFSource) -> GGUFFamily:
    if source.architecture not in BY_ARCHITECTURE:
        raise UnsupportedModelError(
            f"{source.file.path}: architecture {source.architecture!r} is not supported; "
            f"Loire runs {', '.join(sorted(BY_ARCHITECTURE))}"
        )
    return BY_ARCHITECTURE[source.architecture]


def tensors(file: GGUFFile, description: ModelDescription) -> dict[str, TensorInfo]:
    """The file's tensors under their common names.

    Raises CheckpointError, naming it, for a tensor that has no place in the model.
    """
    source = GGUFSource.of(file)
    family = _family(source)
    # Layers that predict several tokens stand behind the others; nothing uses them.
    has_more = source.own.integer("nextn_predict_layers", 0, low=0) > 0
    found: dict[str, TensorInfo] = {}
    for name, tensor in file.tensors.items():
        if has_more and _layer_of(name) >= description.num_layers:
            continue
        part, common = _common_name(name, family, str(file.path))
        if common is None:
            continue
        info = TensorInfo(
            name=common,
            shape=tensor.shape,
            format=tensor.format,
            path=tensor.path,
            offset=tensor.offset,
            num_bytes=tensor.num_bytes,
        )
        found[common] = family.adjusted(info, part, description)
    return taken_apart(found)


def _layer_of(name: str) -> int:
    """The layer that a tensor belongs to; -1 for none."""
    match = re.match(r"blk\.(\d+)\.", name)
    return -1 if match is None else int(match[1])


def _common_name(name: str, family: GGUFFamily, path: str) -> tuple[str, str | None]:
    """The part's name in the file, and the tensor's common name; None leaves it aside."""
    top = {**TOP, **family.top_names}
    if name in top:
        return name, top[name]
    match = re.fullmatch(r"blk\.(\d+)\.([\w.]+?)(\.weight|\.bias|)", name)
    parts = {**PARTS, **family.names}
    if match is None or match[2] not in parts:
        raise CheckpointError(f"{path}: tensor {name!r} has no place in this model")
    common = parts[match[2]]
    if common is None:
        return match[2], None
    common = f"{common}{match[3]}".replace("_correction.bias", "_correction_bias")
    return match[2], f"model.layers.{match[1]}.{common}"


def in_file(info: TensorInfo, description: ModelDescription) -> TensorInfo:
    """A tensor by the name that it has in files of the description's architecture, and with the
    order of rows there (interleaved_heads): what tensors() takes back.

    Raises UnsupportedModelError where they have no place for it.
    """
    family = BY_ARCHITECTURE[description.architecture]
    top = {common: name for name, common in {**TOP, **family.top_names}.items()}
    parts = {common: part for part, common in {**PARTS, **family.names}.items()}
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", info.name)
    part = None if match is None else parts.get(match[2])
    if match is not None and part is not None:
        name = f"blk.{match[1]}.{part}.{match[3]}"
        return replace(family.adjusted(info, part, description), name=name)
    if info.name not in top:
        raise UnsupportedModelError(
            f"{info.path}: GGUF files of {description.architecture} have no place for the tensor "
            f"{info.name!r}"
        )
    return replace(info, name=top[info.name])


def end_tokens(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Tokens that end an answer: those that the metadata says, and those of known names."""
    ids = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    found = [int(value) for value in ids if isinstance(value, int)]
    tokens = metadata.get("tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list):
        return tuple(dict.fromkeys(found))
    if not isinstance(kinds, array) or len(kinds) != len(tokens):
        kinds = array("i", [0] * len(tokens))
    named = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if token in END_OF_TURN or (token in PLAIN_ENDS and kind in (CONTROL, USER_DEFINED))
    }
    # Where messages have names of their own for the ends of an answer, this one ends a part of it.
    if {"<|return|>", "<|call|>"} <= named.keys() or {"<|calls|>", "<|flush|>"} <= named.keys():
        end = named.pop("<|end|>", None)
        found = [index for index in found if index != end]
    if "<|tool_response>" in named:
        named.pop("</s>", None)
    return tuple(dict.fromkeys([*found, *named.values()]))
