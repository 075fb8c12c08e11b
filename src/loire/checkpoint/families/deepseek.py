"""DeepSeek-V2 and V3, and GLM-4.7-Flash: latent attention, and experts with one for all tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import MAX_EXPERTS, Common
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.feed_forward import ExpertsDescription, GatedMLPDescription, Routing, Scores
from loire.checkpoint.fields import Fields
from loire.checkpoint.latent_attention import LatentAttentionDescription
from loire.checkpoint.rope_config import stretched_scores, yarn_scale

MAX_DIM = 2**16


def _described(
    common: Common,
    mixer: LatentAttentionDescription,
    experts: ExpertsDescription | None,
    is_sparse: Sequence[bool],
) -> ModelDescription:
    """One layer for each of is_sparse: with experts, or with an MLP."""
    mlp = GatedMLPDescription(
        intermediate_size=common.layer["intermediate_size"],
        activation=common.layer.get("activation", "silu"),
    )
    layers = (
        LayerDescription(mixer=mixer, feed_forward=experts if sparse and experts else mlp)
        for sparse in is_sparse
    )
    return ModelDescription(**common.model, layers=tuple(layers))


def _common(fields: Fields, architecture: str, rope_dim: int, **defaults: Any) -> Common:
    """What all families share. Heads have other sizes here than one of head_dim."""
    heads = fields.integer("num_attention_heads")
    shaped = {**fields.values, "head_dim": rope_dim, "num_key_value_heads": heads}
    return config_fields.common(Fields(shaped, fields.source), architecture, **defaults)


def _attention(
    fields: Fields, common: Common, rope_dim: int, *, key_dim: int, value_dim: int, query_rank: int
) -> LatentAttentionDescription:
    key_dim = fields.integer("qk_nope_head_dim", key_dim, high=MAX_DIM)
    filled = config_fields.with_defaults(fields, q_lora_rank=query_rank)
    return LatentAttentionDescription(
        num_heads=common.layer["num_heads"],
        key_dim=key_dim,
        rope_dim=rope_dim,
        value_dim=fields.integer("v_head_dim", value_dim, high=MAX_DIM),
        rank=fields.integer("kv_lora_rank", 512, high=MAX_DIM),
        query_rank=filled.optional_integer("q_lora_rank", high=MAX_DIM),
        scale=(key_dim + rope_dim) ** -0.5 * stretched_scores(fields),
        rope=common.layer["rope"],
        interleaved=fields.flag("rope_interleave", True),
        bias=fields.flag("attention_bias", False),
    )


def _rope_dim(fields: Fields) -> int:
    return fields.integer("qk_rope_head_dim", 64, high=4096)


def _experts(
    fields: Fields,
    common: Common,
    *,
    count: int,
    top_k: int,
    size: int,
    num_shared: int,
    scores: Scores,
    groups: tuple[int, int],
    **routing: Any,
) -> ExpertsDescription | None:
    """None where the file says that there are none."""
    if "n_routed_experts" in fields.values and fields.values["n_routed_experts"] is None:
        return None
    if fields.values.get("moe_layer_freq") not in (None, 1):
        raise UnsupportedModelError(
            f"{fields.source}: moe_layer_freq {fields.values['moe_layer_freq']!r} is not supported"
        )
    size = fields.integer("moe_intermediate_size", size)
    filled = config_fields.with_defaults(fields, n_shared_experts=num_shared)
    shared = filled.optional_integer("n_shared_experts", low=0, high=1024) or 0
    return ExpertsDescription(
        routing=_routing(
            fields.source,
            num_experts=fields.integer("n_routed_experts", count, high=MAX_EXPERTS),
            top_k=fields.integer("num_experts_per_tok", top_k),
            num_groups=groups[0],
            chosen_groups=groups[1],
            scores=scores,
            **routing,
        ),
        intermediate_size=size,
        activation=common.layer["activation"],
        choice_bias=scores == "sigmoid",
        shared_size=size * shared,
        shared_gate=False,
    )


def _routing(source: str, **values: Any) -> Routing:
    try:
        return Routing(**values)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _groups(fields: Fields, num_groups: int, chosen: int) -> tuple[int, int]:
    """How many groups of experts there are, and how many a token chooses from; null: one."""
    filled = config_fields.with_defaults(fields, n_group=num_groups, topk_group=chosen)
    return (
        filled.optional_integer("n_group") or 1,
        filled.optional_integer("topk_group") or 1,
    )


def _scale(fields: Fields, default: float) -> float:
    return fields.number("routed_scaling_factor", default, low=1e-6, high=1e6)


def _after_dense(fields: Fields, default: int) -> list[bool]:
    dense = fields.integer("first_k_dense_replace", default, low=0)
    return [layer >= dense for layer in range(config_fields.num_layers(fields))]


def _deepseek_v2(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(fields, bos_token_id=1, eos_token_id=2)
    if fields.flag("mlp_bias", False) or fields.flag("norm_topk_prob", False):
        raise UnsupportedModelError(
            f"{fields.source}: mlp_bias and norm_topk_prob are not supported in this family"
        )
    method = fields.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise UnsupportedModelError(f"{fields.source}: topk_method {method!r} is not supported")
    rope_dim = _rope_dim(fields)
    common = _common(fields, "deepseek_v2", rope_dim)
    experts = _experts(
        fields,
        common,
        count=64,
        top_k=6,
        size=1407,
        num_shared=2,
        scores="softmax",
        groups=(1, 1) if method == "greedy" else _groups(fields, 1, 1),
        renormalise=False,
        scale=_scale(fields, 1.0),
    )
    mixer = _attention(fields, common, rope_dim, key_dim=128, value_dim=128, query_rank=1536)
    # transformers does not look at rope_interleave here.
    return _described(common, replace(mixer, interleaved=True), experts, _after_dense(fields, 0))


def _deepseek_v3(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(fields, bos_token_id=0, eos_token_id=1)
    rope_dim = _rope_dim(fields)
    common = _common(fields, "deepseek_v3", rope_dim, max_positions=4096)
    experts = _experts(
        fields,
        common,
        count=256,
        top_k=8,
        size=2048,
        num_shared=1,
        scores="sigmoid",
        groups=_groups(fields, 8, 4),
        renormalise=fields.flag("norm_topk_prob", True),
        scale=_scale(fields, 2.5),
    )
    mixer = _attention(fields, common, rope_dim, key_dim=128, value_dim=128, query_rank=1536)
    return _described(common, mixer, experts, _after_dense(fields, 3))


def _glm4_moe_lite(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(fields, bos_token_id=0, eos_token_id=1)
    rope_dim = _rope_dim(fields)
    common = _common(fields, "glm4_moe_lite", rope_dim, max_positions=202752, eps=1e-5)
    experts = _experts(
        fields,
        common,
        count=64,
        top_k=4,
        size=1536,
        num_shared=1,
        scores="sigmoid",
        groups=_groups(fields, 1, 1),
        renormalise=fields.flag("norm_topk_prob", True),
        scale=_scale(fields, 1.8),
    )
    mixer = _attention(fields, common, rope_dim, key_dim=192, value_dim=256, query_rank=768)
    is_sparse = _after_dense(fields, 1)
    types = fields.values.get("mlp_layer_types")
    if types is not None:
        known = ("dense", "sparse")
        if (
            not isinstance(types, list)
            or len(types) != len(is_sparse)
            or any(kind not in known for kind in types)
        ):
            raise fields.wrong("mlp_layer_types", types, f"{len(is_sparse)} of {', '.join(known)}")
        is_sparse = [kind == "sparse" for kind in types]
    return _described(common, mixer, experts, is_sparse)


def _common_name(name: str) -> str | None:
    return name.replace(".mlp.shared_experts.", ".mlp.shared_expert.")


def _gguf(source: GGUFSource) -> ModelDescription:
    """Since 2025 the files call the size of what is kept a key's length; older ones a head's."""
    own = source.own
    if own.values.get("attention.temperature_scale"):
        raise UnsupportedModelError(
            f"{own.source}: queries that grow with their position are not supported here"
        )
    heads, rope_dim = own.integer("attention.head_count"), own.integer("rope.dimension_count")
    apart = "attention.key_length_mla" in own.values
    end = "_mla" if apart else ""
    key_length = own.integer(f"attention.key_length{end}", high=MAX_DIM)
    if key_length <= rope_dim:
        raise own.wrong(f"attention.key_length{end}", key_length, f"above {rope_dim}, the rotated")
    value_dim = own.integer(f"attention.value_length{end}", high=MAX_DIM)
    shaped = {"attention.head_count_kv": heads, "attention.key_length": rope_dim,
              "attention.value_length": rope_dim}  # fmt: skip
    common = gguf_fields.common(replace(source, own=Fields({**own.values, **shaped}, own.source)))
    rope, scale = common.layer["rope"], key_length**-0.5
    multiplier = own.optional_number("rope.scaling.yarn_log_multiplier", low=0.0, high=100.0)
    if rope.scaling == "yarn" and multiplier:
        # A tenth of mscale_all_dim. (That mscale is the same is assumed, as in llama.cpp.)
        scale *= yarn_scale(rope.factor, 10 * multiplier) ** 2
        rope = replace(rope, attention_factor=1.0)
    mixer = LatentAttentionDescription(
        num_heads=heads,
        key_dim=key_length - rope_dim,
        rope_dim=rope_dim,
        value_dim=value_dim,
        rank=own.integer("attention.kv_lora_rank", high=MAX_DIM),
        query_rank=own.optional_integer("attention.q_lora_rank", high=MAX_DIM),
        scale=scale,
        rope=rope,
        keys_apart=apart,
    )
    # Layers that predict several tokens stand behind the others.
    num_layers = source.num_layers - own.integer("nextn_predict_layers", 0, low=0)
    is_sparse = [source.has(f"blk.{layer}.ffn_gate_inp.weight") for layer in range(num_layers)]
    return _described(common, mixer, _gguf_experts(source, is_sparse), is_sparse)


def _gguf_experts(source: GGUFSource, is_sparse: Sequence[bool]) -> ExpertsDescription | None:
    if True not in is_sparse:
        return None
    own, first = source.own, is_sparse.index(True)
    has_bias = source.has(f"blk.{first}.exp_probs_b.bias")
    gating = own.integer("expert_gating_func", 2 if has_bias else 1, low=1)
    if gating not in (1, 2):
        raise own.wrong("expert_gating_func", gating, "1 (softmax) or 2 (sigmoid)")
    size = own.integer("expert_feed_forward_length")
    return ExpertsDescription(
        routing=_routing(
            own.source,
            num_experts=own.integer("expert_count", high=MAX_EXPERTS),
            top_k=own.integer("expert_used_count"),
            num_groups=own.integer("expert_group_count", 1),
            chosen_groups=own.integer("expert_group_used_count", 1),
            scores="sigmoid" if gating == 2 else "softmax",
            renormalise=own.flag("expert_weights_norm", False),
            scale=own.number("expert_weights_scale", 1.0, low=0.0, high=1e6) or 1.0,
        ),
        intermediate_size=size,
        choice_bias=has_bias,
        shared_size=size * own.integer("expert_shared_count", 0, low=0, high=1024),
        shared_gate=False,
    )


def _adjusted(tensor: TensorInfo, part: str, description: ModelDescription) -> TensorInfo:
    """Keys and values of all heads one below the other."""
    if part in ("attn_k_b", "attn_v_b") and len(tensor.shape) == 3:
        heads, rows, inputs = tensor.shape
        return replace(tensor, shape=(heads * rows, inputs))
    return tensor


_NAMES = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
    "exp_probs_b": "mlp.gate.e_score_correction",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}

DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    describe=_deepseek_v2,
    common_name=_common_name,
    gguf=GGUFFamily(architecture="deepseek2", describe=_gguf, names=_NAMES, adjusted=_adjusted),
)
DEEPSEEK_V3 = Family(model_type="deepseek_v3", describe=_deepseek_v3, common_name=_common_name)
KIMI_K2 = replace(DEEPSEEK_V3, model_type="kimi_k2")
"""DeepSeek-V3 by another name."""
GLM4_MOE_LITE = Family(
    model_type="glm4_moe_lite", describe=_glm4_moe_lite, common_name=_common_name
)
