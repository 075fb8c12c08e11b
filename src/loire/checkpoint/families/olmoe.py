"""OLMoE: experts, and norms of queries and keys over all heads at once."""

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.description import ModelDescription, with_experts
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields


def _olmoe(fields: Fields) -> ModelDescription:
    if fields.values.get("clip_qkv") is not None:
        raise UnsupportedModelError(f"{fields.source}: clip_qkv is not supported")
    filled = config_fields.with_defaults(
        fields, eos_token_id=50279, intermediate_size=2048, num_experts=64
    )
    bias = fields.flag("attention_bias", False)
    description = dense(
        config_fields.common(filled, "olmoe", max_positions=4096, eps=1e-5),
        (None,) * config_fields.num_layers(fields),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        norms_span_heads=True,
    )
    experts = config_fields.experts(
        filled,
        description,
        top_k=8,
        renormalise=fields.flag("norm_topk_prob", False),
    )
    return with_experts(description, [experts] * description.num_layers)


def _gguf(source: GGUFSource) -> ModelDescription:
    common = gguf_fields.common(source)
    description = dense(common, (None,) * source.num_layers, norms_span_heads=True)
    experts = gguf_fields.experts(source, description, renormalise=False)
    return with_experts(description, experts)


OLMOE = Family(
    model_type="olmoe",
    describe=_olmoe,
    gguf=GGUFFamily(architecture="olmoe", describe=_gguf),
)
