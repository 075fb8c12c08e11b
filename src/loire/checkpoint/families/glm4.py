"""Dense GLM-4 (0414): norms around each part, half of each head rotated, in pairs side by side."""

from dataclasses import replace
from typing import Any

from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import Common, dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields
from loire.checkpoint.mixers import AttentionDescription

END_TOKENS = [151329, 151336, 151338]
"""Where config.json names none."""
_NORMS = {
    ".post_attention_layernorm.": ".pre_feedforward_layernorm.",
    ".post_self_attn_layernorm.": ".post_attention_layernorm.",
    ".post_mlp_layernorm.": ".post_feedforward_layernorm.",
}


def _in_pairs(common: Common, num_layers: int, **settings: Any) -> ModelDescription:
    def changed(layer: LayerDescription) -> LayerDescription:
        assert isinstance(layer.mixer, AttentionDescription)
        return replace(layer, mixer=replace(layer.mixer, pairs_together=True))

    description = dense(common, (None,) * num_layers, norms="around", **settings)
    return replace(description, layers=tuple(map(changed, description.layers)))


def _glm4(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(
        fields, partial_rotary_factor=0.5, eos_token_id=END_TOKENS, num_key_value_heads=2
    )
    common = config_fields.common(
        fields, "glm4", max_positions=131072, head_dim=128, eps=1.5625e-07
    )
    bias = fields.flag("attention_bias", True)
    return _in_pairs(common, config_fields.num_layers(fields), qkv_bias=bias)


def _common_name(name: str) -> str | None:
    for theirs, ours in _NORMS.items():
        if theirs in name:
            return name.replace(theirs, ours)
    return name


def _gguf(source: GGUFSource) -> ModelDescription:
    # Layers that predict several tokens stand behind the others.
    num_layers = source.num_layers - source.own.integer("nextn_predict_layers", 0, low=0)
    return _in_pairs(gguf_fields.common(source), num_layers)


GLM4 = Family(
    model_type="glm4",
    describe=_glm4,
    common_name=_common_name,
    gguf=GGUFFamily(
        architecture="glm4",
        describe=_gguf,
        names={**gguf_fields.NORMS_AROUND, "ffn_up": "mlp.gate_up_proj"},
    ),
)
