"""Granite 3, dense and with experts, perhaps one that all tokens share: Llama with multipliers of
embeddings, scores, layers and logits."""

from collections.abc import Mapping
from dataclasses import replace

from loire.checkpoint.description import ModelDescription, with_experts
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import Common, dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.feed_forward import ExpertsDescription
from loire.checkpoint.fields import Fields


def with_multipliers(
    common: Common, fields: Fields, *, embedding: str, scores: str, residual: str, logits: str
) -> Common:
    """The settings, with those of the multipliers that fields have by these names."""

    def multiplier(key: str) -> float:
        return fields.number(key, 1.0, low=1e-6, high=1e6)

    common.model.update(
        embedding_scale=multiplier(embedding),
        residual_multiplier=multiplier(residual),
        logit_divisor=multiplier(logits),
    )
    common.layer["query_scale"] = multiplier(scores)
    return common


def config_settings(fields: Fields, architecture: str) -> Common:
    """What Granite's families share in config.json."""
    fields = config_fields.with_defaults(fields, bos_token_id=1, eos_token_id=2)
    return with_multipliers(
        config_fields.common(fields, architecture),
        fields,
        embedding="embedding_multiplier",
        scores="attention_multiplier",
        residual="residual_multiplier",
        logits="logits_scaling",
    )


def gguf_settings(source: GGUFSource) -> Common:
    """The same in GGUF files."""
    common = gguf_fields.common(source)
    head_scale = common.layer["head_dim"] ** -0.5
    return with_multipliers(
        common,
        config_fields.with_defaults(source.own, **{"attention.scale": head_scale}),
        embedding="embedding_scale",
        scores="attention.scale",
        residual="residual_scale",
        logits="logit_scale",
    )


def _granite(fields: Fields) -> ModelDescription:
    bias = fields.flag("attention_bias", False)
    return dense(
        config_settings(fields, "granite"),
        (None,) * config_fields.num_layers(fields),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def _gguf(source: GGUFSource) -> ModelDescription:
    return dense(gguf_settings(source), (None,) * source.num_layers)


def _granite_moe(fields: Fields) -> ModelDescription:
    return _with_experts(fields, shared_size=0)


def _granite_moe_shared(fields: Fields) -> ModelDescription:
    return _with_experts(fields, fields.integer("shared_intermediate_size", 0, low=0))


def _with_experts(fields: Fields, shared_size: int) -> ModelDescription:
    bias = fields.flag("attention_bias", False)
    description = dense(
        config_settings(fields, "granitemoe"),
        (None,) * config_fields.num_layers(fields),
        qkv_bias=bias,
        output_bias=bias,
    )
    experts = config_experts(fields, description, shared_size)
    return with_experts(description, [experts] * description.num_layers)


def config_experts(
    fields: Fields, description: ModelDescription, shared_size: int
) -> ExpertsDescription:
    """Of a layer. shared_size: of the expert that all tokens share."""
    filled = config_fields.with_defaults(fields, num_local_experts=8)
    return config_fields.experts(
        filled, description, top_k=2, shared_size=shared_size, shared_gate=False
    )


def _granite_moe_gguf(source: GGUFSource) -> ModelDescription:
    return with_gguf_experts(source, _gguf(source))


def with_gguf_experts(source: GGUFSource, description: ModelDescription) -> ModelDescription:
    """With experts in the layers that have them."""
    shared_size = source.own.integer("expert_shared_feed_forward_length", 0, low=0)
    found = (
        experts and replace(experts, shared_size=shared_size, shared_gate=False)
        for experts in gguf_fields.experts(source, description)
    )
    return with_experts(description, list(found))


_MOE_NAMES = {
    "input_linear.weight": "experts.gate_up_proj",
    "experts.gate_up_proj": "experts.gate_up_proj",
    "output_linear.weight": "experts.down_proj",
    "experts.down_proj": "experts.down_proj",
    "router.layer.weight": "gate.weight",
    "router.weight": "gate.weight",
}


_SHARED_NAMES = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}
GGUF_SHARED: Mapping[str, str | None] = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}


def common_name(name: str) -> str:
    """Of a tensor; the MLP that every token goes through is a shared expert, even where there is no
    other."""
    if name.endswith(".mamba.dt_bias"):
        return name.replace(".dt_bias", ".dt.bias")
    layer, found, part = name.partition(".block_sparse_moe.")
    if found:
        return f"{layer}.mlp.{_MOE_NAMES.get(part, part)}"
    layer, found, part = name.partition(".shared_mlp.")
    if not found:
        return name
    module, _, ending = part.partition(".")
    return f"{layer}.mlp.shared_expert.{_SHARED_NAMES.get(module, module)}.{ending}"


GRANITE = Family(
    model_type="granite",
    describe=_granite,
    gguf=GGUFFamily(
        architecture="granite", describe=_gguf, adjusted=gguf_fields.interleaved_queries_and_keys
    ),
)
GRANITE_MOE = Family(
    model_type="granitemoe",
    describe=_granite_moe,
    common_name=common_name,
    gguf=GGUFFamily(
        architecture="granitemoe",
        describe=_granite_moe_gguf,
        names=GGUF_SHARED,
        adjusted=gguf_fields.interleaved_queries_and_keys,
    ),
)
GRANITE_MOE_SHARED = Family(
    model_type="granitemoeshared", describe=_granite_moe_shared, common_name=common_name
)
