"""LFM2: short convolutions, and attention in some layers; in its mixtures experts in most."""

import re
from collections.abc import Sequence
from dataclasses import replace

from loire.checkpoint.description import ModelDescription, with_experts
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.feed_forward import ExpertsDescription
from loire.checkpoint.fields import Fields
from loire.checkpoint.recurrent_mixers import ShortConvolutionDescription

_NAMES = {
    "operator_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "self_attn.out_proj": "self_attn.o_proj",
    "self_attn.q_layernorm": "self_attn.q_norm",
    "self_attn.k_layernorm": "self_attn.k_norm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.gate": "mlp.gate",
}
_MATRICES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""Of parts of layers -> common ones."""


def _with_convolutions(
    description: ModelDescription, has_attention: Sequence[bool], width: int, *, bias: bool
) -> ModelDescription:
    """A short convolution in the place of the attention that other layers do not have."""
    convolution = ShortConvolutionDescription(
        hidden_size=description.hidden_size, filter_width=width, bias=bias
    )
    pairs = zip(description.layers, has_attention, strict=True)
    layers = tuple(x if attends else replace(x, mixer=convolution) for x, attends in pairs)
    return replace(description, layers=layers)


def _has_attention(fields: Fields) -> tuple[bool, ...]:
    count = config_fields.num_layers(fields)
    types = fields.values.get("layer_types")
    if types is None:
        chosen = fields.values.get("full_attn_idxs")
        if chosen is None:
            return (True,) * count
        if not isinstance(chosen, list) or not all(type(i) is int for i in chosen):
            raise fields.wrong("full_attn_idxs", chosen, "a list of layers")
        return tuple(layer in chosen for layer in range(count))
    known = ("full_attention", "conv")
    if not isinstance(types, list) or len(types) != count or any(t not in known for t in types):
        raise fields.wrong("layer_types", types, f"{count} of {', '.join(known)}")
    return tuple(kind == "full_attention" for kind in types)


def _intermediate_size(fields: Fields) -> int:
    """Of the MLPs: the files have another number, from which it is made."""
    values = fields.values
    key = "block_ff_dim" if values.get("block_ff_dim") is not None else "intermediate_size"
    size = fields.integer(key, 12288)
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    if values.get("block_ffn_dim_multiplier", 1.0) is None:
        return size
    multiplier = fields.number("block_ffn_dim_multiplier", 1.0, low=0.01, high=100.0)
    multiple = fields.integer("block_multiple_of", 256)
    return -(-int(multiplier * size) // multiple) * multiple


def _described(fields: Fields, architecture: str, intermediate_size: int) -> ModelDescription:
    """With an MLP in every layer."""
    tied = fields.flag("tie_embedding", fields.flag("tie_word_embeddings", True))
    filled = config_fields.with_defaults(fields, bos_token_id=1, eos_token_id=2)
    changed = {
        "intermediate_size": intermediate_size,
        "rms_norm_eps": fields.number("norm_eps", 1e-5, low=0.0, high=1.0),
        "tie_word_embeddings": tied,
    }
    filled = Fields({**filled.values, **changed}, fields.source)
    has_attention = _has_attention(fields)
    common = config_fields.common(
        filled, architecture, max_positions=128_000, kv_heads=8, theta=1e6
    )
    description = dense(common, (None,) * len(has_attention), qk_norm=True)
    return _with_convolutions(
        description,
        has_attention,
        fields.integer("conv_L_cache", 3, low=2, high=64),
        bias=fields.flag("conv_bias", False),
    )


def _lfm2(fields: Fields) -> ModelDescription:
    return _described(fields, "lfm2", _intermediate_size(fields))


def _lfm2_moe(fields: Fields) -> ModelDescription:
    filled = config_fields.with_defaults(fields, num_experts=32, intermediate_size=7168)
    description = _described(filled, "lfm2moe", filled.integer("intermediate_size"))
    experts = config_fields.experts(
        filled,
        description,
        top_k=4,
        renormalise=fields.flag("norm_topk_prob", True),
        scores="sigmoid",
        intermediate_size=fields.integer("moe_intermediate_size", 1792),
        choice_bias=fields.flag("use_expert_bias", True),
    )
    scale = fields.number("routed_scaling_factor", 1.0, low=1e-3, high=1e3)
    experts = replace(experts, routing=replace(experts.routing, scale=scale))
    num_dense = fields.integer("num_dense_layers", 2, low=0)
    count = description.num_layers
    return with_experts(description, [None if i < num_dense else experts for i in range(count)])


def _common_name(name: str) -> str:
    if name.startswith("model.embedding_norm."):
        return name.replace("embedding_norm", "norm")
    name = name.replace(".feed_forward.expert_bias", ".mlp.gate.e_score_correction_bias")
    name = re.sub(
        r"\.feed_forward\.experts\.(\d+)\.(w[123])\.",
        lambda match: f".mlp.experts.{match[1]}.{_MATRICES[match[2]]}.",
        name,
    )
    name = name.replace(".feed_forward.experts.", ".mlp.experts.")
    match = re.fullmatch(r"(model\.layers\.\d+)\.(.+)\.(\w+)", name)
    if match is None or match[2] not in _NAMES:
        return name
    return f"{match[1]}.{_NAMES[match[2]]}.{match[3]}"


def _gguf(source: GGUFSource) -> ModelDescription:
    own, num_layers = source.own, source.num_layers
    has_attention = [source.has(f"blk.{i}.attn_q.weight") for i in range(num_layers)]
    source = gguf_fields.with_largest(source, "attention.head_count_kv")
    common = gguf_fields.common(source)
    common.layer.update(qk_norm=True)
    description = _with_convolutions(
        dense(common, (None,) * num_layers),
        has_attention,
        own.integer("shortconv.l_cache", low=2, high=64),
        bias=any(source.has(f"blk.{i}.shortconv.in_proj.bias") for i in range(num_layers)),
    )
    found = gguf_fields.experts(source, description, scores="sigmoid")

    def settled(index: int, experts: ExpertsDescription | None) -> ExpertsDescription | None:
        if experts is None:
            return None
        return replace(experts, choice_bias=source.has(f"blk.{index}.exp_probs_b.bias"))

    return with_experts(description, [settled(*pair) for pair in enumerate(found)])


_GGUF_NAMES = {
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "exp_probs_b": "mlp.gate.e_score_correction",
}


def _gguf_family(architecture: str) -> GGUFFamily:
    return GGUFFamily(
        architecture=architecture,
        describe=_gguf,
        names=_GGUF_NAMES,
        top_names={"token_embd_norm.weight": "model.norm.weight"},
    )


LFM2 = Family(
    model_type="lfm2", describe=_lfm2, common_name=_common_name, gguf=_gguf_family("lfm2")
)
LFM2_MOE = Family(
    model_type="lfm2_moe",
    describe=_lfm2_moe,
    common_name=_common_name,
    gguf=_gguf_family("lfm2moe"),
)
