"""Muse Glimmer, of which text alone is read: windows in most layers, the others without rotary
embedding; gates of what attention gives; norms around each part, of heads and of embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.families import config_fields
from loire.checkpoint.families.common import dense, without_rope
from loire.checkpoint.families.family import Family
from loire.checkpoint.fields import Fields
from loire.checkpoint.mixers import AttentionDescription

PERIOD = 4
"""The last of so many layers sees everything, counted from the end of the model."""
_TEXT: Mapping[str, Any] = {
    "vocab_size": 202_048,
    "hidden_size": 6656,
    "intermediate_size": 19_968,
    "num_hidden_layers": 52,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "sliding_window": 2048,
    "bos_token_id": 200_000,
    "eos_token_id": 200_001,
}


def _describe(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(fields, **_TEXT)
    if fields.flag("attention_bias", False):
        raise UnsupportedModelError(f"{fields.source}: attention_bias is not supported")
    common = config_fields.common(
        fields, "muse_glimmer", eps=1e-5, activation_key="hidden_activation"
    )
    num_layers = config_fields.num_layers(fields)
    windows = config_fields.windows(fields, lambda layer: bool((num_layers - 1 - layer) % PERIOD))
    factor = fields.number("qk_scale_factor", 3.87, low=1e-3, high=1e3)
    description = dense(
        common,
        windows,
        qk_norm=True,
        norms="around",
        query_scale=factor * common.layer["head_dim"] ** -0.5,
    )
    description = replace(
        without_rope(description, _without_rope(fields, num_layers)),
        norm_offset=1.0,
        final_norm_offset=0.0,
        post_norm_eps=fields.number("post_norm_eps", 1e-8, low=0.0, high=1.0),
        embedding_norm=True,
        logit_divisor=1 / fields.number("output_multiplier", 26**-0.5, low=1e-6, high=1e6),
        logit_softcap=fields.number("final_logit_softcapping", 20.0, low=1e-3, high=1e6),
    )
    return replace(description, layers=tuple(map(_gated, description.layers)))


def _gated(layer: LayerDescription) -> LayerDescription:
    assert isinstance(layer.mixer, AttentionDescription)
    mixer = replace(layer.mixer, output_gate=True, gate_apart=True, norm_weights=False)
    return replace(layer, mixer=mixer)


def _without_rope(fields: Fields, num_layers: int) -> list[int]:
    """Layers whose base of angles is 0 are not told positions; other bases are the model's one."""
    bases = fields.values.get("layer_rope_theta")
    if bases is None:
        return [i for i in range(num_layers) if (num_layers - 1 - i) % PERIOD == 0]
    if not isinstance(bases, Sequence) or len(bases) != num_layers:
        raise fields.wrong("layer_rope_theta", bases, f"{num_layers} numbers")
    return [i for i, base in enumerate(bases) if not base]


def _common_name(name: str) -> str | None:
    parts = ("model.vision_tower.", "model.vision_adapter.", "model.vision_projection.")
    return None if name.startswith(parts) else name


MUSE_GLIMMER = Family(
    model_type="muse_glimmer_text",
    text_of=("muse_glimmer",),
    describe=_describe,
    common_name=_common_name,
)
