"""What config.json says of a model, and its tensor names translated to the common ones.

How families differ stands in loire.checkpoint.families.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint import expert_tensors, mxfp4
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families.family import Family
from loire.checkpoint.families.registry import BY_MODEL_TYPE, BY_WRAPPER
from loire.checkpoint.fields import Fields
from loire.checkpoint.safetensors_header import BUFFERS

_OUTER = ("bos_token_id", "eos_token_id", "tie_word_embeddings", "dtype", "torch_dtype",
          "quantization_config")  # fmt: skip
"""What a model of text and vision says for both, outside its text_config."""
_OTHER_PARTS = (
    *("vision_tower.", "multi_modal_projector.", "vision_model.", "visual.", "audio_tower."),
    *("embed_vision.", "embed_audio.", "mtp."),
)
"""Beginnings of names of what is not the text decoder; mtp: multi-token prediction."""
_BASE = ("embed_tokens.", "layers.", "norm.")
"""Beginnings of names in files that hold the model without a head."""
_BUFFERS = (".rotary_emb.inv_freq", ".position_ids")
"""Ends of names of what follows from the configuration."""
_LAYER = re.compile(r"model\.layers\.(\d+)\..*")


def describe(config: Mapping[str, Any], source: str) -> ModelDescription:
    """The description of a model from its parsed config.json; source names it in errors.

    Raises UnsupportedModelError for another family or feature, CheckpointError for nonsense.
    """
    family, fields = family_of(config, source)
    return family.describe(fields)


def family_of(config: Mapping[str, Any], source: str) -> tuple[Family, Fields]:
    """The family of a model and what its config.json says of the text decoder.

    Raises UnsupportedModelError for another family.
    """
    fields = Fields(config, source)
    model_type = fields.text("model_type")
    if model_type in BY_WRAPPER:
        text = {key: value for key, value in config.items() if key in _OUTER}
        text |= _section(config, "text_config")
        fields = Fields(text, f"{source}, text_config")
        model_type = fields.text("model_type", BY_WRAPPER[model_type].model_type)
    if model_type not in BY_MODEL_TYPE:
        raise UnsupportedModelError(
            f"{source}: model type {model_type!r} is not supported; "
            f"Loire runs {', '.join(sorted(BY_MODEL_TYPE))}"
        )
    return BY_MODEL_TYPE[model_type], fields


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def tensors(
    found: Mapping[str, TensorInfo], family: Family, num_layers: int
) -> dict[str, TensorInfo]:
    """Tensors of safetensors files under their common names.

    The parts of a multimodal model that are not its text decoder are left out, and so are layers
    after the last, which predict further tokens, and buffers that older files hold.
    """
    texts = {
        name: text
        for name, tensor in found.items()
        if (text := _text_name(name)) is not None and not _is_buffer(text, tensor)
    }
    has_prefix = any(text.startswith("model.") for text in texts.values())
    result: dict[str, TensorInfo] = {}
    for name, text in texts.items():
        tensor = found[name]
        if text.startswith(_BASE) and not has_prefix:
            text = f"model.{text}"
        common = family.common_name(text)
        layer = None if common is None else _LAYER.fullmatch(common)
        if common is None or (layer is not None and int(layer[1]) >= num_layers):
            continue
        if common in result:
            raise CheckpointError(
                f"{tensor.path}: tensors {result[common].name!r} and {name!r} are both the "
                f"model's {common!r}"
            )
        result[common] = family.adjusted(replace(tensor, name=common))
    return expert_tensors.taken_apart(mxfp4.joined(result))


def _is_buffer(name: str, tensor: TensorInfo) -> bool:
    """Whether nothing is made of it. (Quantized weights say their shapes and orders in tensors.)"""
    return tensor.format in BUFFERS.values() and not name.endswith((".weight_shape", "g_idx"))


def _text_name(name: str) -> str | None:
    """The name within the text decoder; None for what is not of it."""
    if name.removeprefix("model.").startswith(_OTHER_PARTS) or name.endswith(_BUFFERS):
        return None
    text = name.removeprefix("language_model.")
    if text.startswith("model.language_model."):
        text = "model." + text.removeprefix("model.language_model.")
    return text
