"""The mixtures of experts of Qwen3."""

from loire.checkpoint.description import ModelDescription, with_experts
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields


def _qwen3_moe(fields: Fields) -> ModelDescription:
    filled = config_fields.with_defaults(
        fields, intermediate_size=6144, sliding_window=4096, num_experts=128
    )
    bias = fields.flag("attention_bias", False)
    window = None
    if fields.flag("use_sliding_window", False):
        window = filled.optional_integer("sliding_window")
    num_layers = config_fields.num_layers(fields)
    description = dense(
        config_fields.common(filled, "qwen3moe", max_positions=32768, kv_heads=4),
        (window,) * num_layers,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )
    experts = config_fields.experts(
        filled,
        description,
        top_k=8,
        intermediate_size=fields.integer("moe_intermediate_size", 768),
        renormalise=fields.flag("norm_topk_prob", False),
    )
    return with_experts(description, config_fields.sparse_layers(fields, description, experts))


def _gguf(source: GGUFSource) -> ModelDescription:
    description = dense(gguf_fields.common(source), gguf_fields.uniform_windows(source))
    return with_experts(description, gguf_fields.experts(source, description))


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    describe=_qwen3_moe,
    gguf=GGUFFamily(architecture="qwen3moe", describe=_gguf),
)
