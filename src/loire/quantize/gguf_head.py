"""The settings in a GGUF file's metadata, of a model that did not come as one.

They are read again with Loire's own reader before anything is done: a model of which a file would
say anything else is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo
from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.families.gguf_fields import plain_rope
from loire.checkpoint.feed_forward import GatedMLPDescription
from loire.checkpoint.gguf_file import GGUFFile, GGUFTensor
from loire.checkpoint.gguf_model import describe, in_file
from loire.checkpoint.hub_cache import name_of
from loire.checkpoint.mixers import AttentionDescription, RopeDescription
from loire.checkpoint.sampling_defaults import for_gguf
from loire.checkpoint.weights import each
from loire.models.rotary import inverse_frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
"""Of models whose files can be made of others."""
WITH_BIASES = ("llama", "qwen2")
"""Those in which llama.cpp has biases in attention."""
WITH_DIVISORS = ("llama",)
"""Those in which it has rope_freqs."""
BLOCKS_VERSION = 2
"""general.quantization_version: how ggml's blocks lie."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says before its weights."""

    metadata: Mapping[str, Any]
    """All keys but those of the vocabulary."""
    tensors: Mapping[str, TensorInfo]
    """Of the checkpoint, by their common names, as the file has them."""
    rope_divisors: tuple[float, ...]
    """Of the tensor rope_freqs; none: there is no such tensor."""


def made_head(checkpoint: Checkpoint) -> Head:
    """Raises UnsupportedModelError for a model that a file of its architecture cannot describe."""
    description = checkpoint.description
    _check_kind(checkpoint)
    present = checkpoint.tensors
    names = [n for weight in each(description.weights()) for n in weight.stored_names(present)]
    # (What is missing is told when it is read.)
    tensors = {name: in_file(present[name], description) for name in names if name in present}
    metadata = {
        "general.architecture": description.architecture,
        "general.name": name_of(checkpoint.path),
        "general.quantization_version": BLOCKS_VERSION,
        **for_gguf(checkpoint.sampling_defaults),
        **{f"{description.architecture}.{key}": x for key, x in _settings(description).items()},
    }
    places = {
        info.name: GGUFTensor(info.name, info.shape, info.format, 0, 0, info.path)
        for info in tensors.values()
    }
    read = describe(GGUFFile(checkpoint.path, metadata, places))
    divisors = _divisors(description)
    lost = [*_differences(_as_read(description, read, bool(divisors)), read)]
    if lost:
        raise UnsupportedModelError(
            f"{checkpoint.path}: a GGUF file of {description.architecture} would not say all of "
            f"this model: {'; '.join(lost[:3])}. `loire quantize` writes a directory of it"
        )
    return Head(metadata, tensors, divisors)


def _check_kind(checkpoint: Checkpoint) -> None:
    description = checkpoint.description
    name, attentions = description.architecture, description.attentions
    is_dense = len(attentions) == description.num_layers and all(
        isinstance(layer.feed_forward, GatedMLPDescription) for layer in description.layers
    )
    if name not in ARCHITECTURES or not is_dense:
        raise UnsupportedModelError(
            f"{checkpoint.path} is no GGUF file: `loire quantize` writes GGUF of any model that "
            f"came as one, and of dense ones of the kinds {', '.join(ARCHITECTURES)}; this is "
            f"{name!r}, of which it writes a directory"
        )
    if name not in WITH_BIASES and (attentions[0].qkv_bias or attentions[0].output_bias):
        raise UnsupportedModelError(
            f"{checkpoint.path} has biases in its attention, which llama.cpp does not have in "
            f"{name}: `loire quantize` writes a directory of it"
        )


def _settings(description: ModelDescription) -> dict[str, Any]:
    """Keys under the architecture's prefix."""
    attentions = description.attentions
    attention = next((a for a in attentions if a.window is None), attentions[0])
    mlp = description.layers[0].feed_forward
    assert isinstance(mlp, GatedMLPDescription)
    found = {
        "block_count": description.num_layers,
        "context_length": _context_length(description, attention.rope),
        "embedding_length": description.hidden_size,
        "feed_forward_length": mlp.intermediate_size,
        "vocab_size": description.vocab_size,
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": description.norm_eps,
        "rope.freq_base": attention.rope.theta,
        "rope.dimension_count": attention.rope.rotary_dim,
        **_scaling(attention.rope),
    }
    local = next((a for a in attentions if a.window is not None), None)
    # (In the others llama.cpp has no windows, whatever a file says.)
    if local is not None and description.architecture == "gemma3":
        found["attention.sliding_window"] = local.window
        found["rope.freq_base_swa"] = local.rope.theta
    return found


def _context_length(description: ModelDescription, rope: RopeDescription) -> int:
    """YaRN's window is told before stretching, a linear one after it (gguf_fields.common)."""
    usual = description.usual_positions if rope.scaling == "yarn" else None
    return usual or description.max_positions


def _scaling(rope: RopeDescription) -> dict[str, Any]:
    if rope.scaling not in ("linear", "yarn"):
        return {}
    found = {"rope.scaling.type": rope.scaling, "rope.scaling.factor": rope.factor}
    if rope.scaling == "linear":
        return found
    return {
        **found,
        "rope.scaling.original_context_length": rope.original_max_positions,
        "rope.scaling.yarn_beta_fast": rope.beta_fast,
        "rope.scaling.yarn_beta_slow": rope.beta_slow,
    }


def _divisors(description: ModelDescription) -> tuple[float, ...]:
    """By which each frequency is divided, where files have Llama 3's stretching so."""
    rope = description.attentions[0].rope
    if description.architecture not in WITH_DIVISORS:
        return ()
    if rope.scaling != "llama3":
        return rope.frequency_divisors
    plain = inverse_frequencies(plain_rope(rope), description.max_positions)
    stretched = inverse_frequencies(rope, description.max_positions)
    return tuple((plain / stretched).tolist())


def _as_read(
    description: ModelDescription, read: ModelDescription, has_divisors: bool
) -> ModelDescription:
    """What the reader should find, without the vocabulary and the tensor of divisors. What the
    model adds to the weights of norms is in them; which window is the usual one is nowhere."""

    def layer(given: LayerDescription) -> LayerDescription:
        mixer = given.mixer
        assert isinstance(mixer, AttentionDescription)
        rope = plain_rope(mixer.rope) if has_divisors else mixer.rope
        if rope.scaling == "linear":
            rope = replace(rope, original_max_positions=0)
        return replace(given, mixer=replace(mixer, rope=rope))

    return replace(
        description,
        layers=tuple(map(layer, description.layers)),
        norm_offset=0.0,
        usual_positions=read.usual_positions,
        dtype=read.dtype,
        bos_token_id=read.bos_token_id,
        eos_token_ids=read.eos_token_ids,
    )


def _differences(wanted: object, found: object, place: str = "") -> Iterator[str]:
    """In words."""
    if is_dataclass(wanted) and type(wanted) is type(found):
        for field in fields(wanted):
            pair = getattr(wanted, field.name), getattr(found, field.name)
            yield from _differences(*pair, f"{place} {field.name}")
    elif isinstance(wanted, tuple) and isinstance(found, tuple) and len(wanted) == len(found):
        for index, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from _differences(one, other, f"{place} {index}")
    elif wanted != found:
        yield f"{place.strip()} would be {str(found)[:40]}, not {str(wanted)[:40]}"
