"""Qwen3-Next, Qwen3.5 and what followed it: gated delta nets, and attention in every fourth layer.

Qwen3-Next and the mixtures of Qwen3.5 have experts, one of them shared. Files of text and vision
hold the same decoder. Layers that predict several tokens (mtp) are left aside.

Of GGUF files: the converter adds 1 to the norms, stores -exp(A_log), and since Qwen3.5 puts the
value heads of one key head apart.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import LayerDescription, ModelDescription, with_experts
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import MAX_HEADS, dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.feed_forward import ExpertsDescription
from loire.checkpoint.fields import Fields
from loire.checkpoint.mixers import AttentionDescription
from loire.checkpoint.recurrent_mixers import GatedDeltaNetDescription

INTERVAL = 4
"""Of layers with attention, where a file does not say it."""
LEFT_ASIDE = ("mtp.", "model.mtp.", "model.visual.", "visual.")


def _hybrid(
    description: ModelDescription,
    has_attention: Sequence[bool],
    delta_net: GatedDeltaNetDescription,
) -> ModelDescription:
    """Gated attention in some layers, a gated delta net in the others."""

    def layer(given: LayerDescription, attends: bool) -> LayerDescription:
        assert isinstance(given.mixer, AttentionDescription)
        gated = replace(given.mixer, output_gate=True)
        return replace(given, mixer=gated if attends else delta_net)

    pairs = zip(description.layers, has_attention, strict=True)
    return replace(description, layers=tuple(layer(*pair) for pair in pairs))


def _checked(delta_net: GatedDeltaNetDescription, source: str) -> GatedDeltaNetDescription:
    if delta_net.num_value_heads % delta_net.num_key_heads:
        raise CheckpointError(
            f"{source}: {delta_net.num_value_heads} value heads of a gated delta net are not a "
            f"multiple of {delta_net.num_key_heads} key heads"
        )
    return delta_net


def _has_attention(fields: Fields) -> tuple[bool, ...]:
    count = config_fields.num_layers(fields)
    types = fields.values.get("layer_types")
    if types is None:
        interval = fields.integer("full_attention_interval", INTERVAL)
        return tuple((layer + 1) % interval == 0 for layer in range(count))
    known = ("full_attention", "linear_attention")
    if not isinstance(types, list) or len(types) != count or any(t not in known for t in types):
        raise fields.wrong("layer_types", types, f"{count} of {', '.join(known)}")
    return tuple(kind == "full_attention" for kind in types)


def _described(fields: Fields, architecture: str, *, is_fused: bool = False) -> ModelDescription:
    """With an MLP in every layer."""
    fields = config_fields.with_defaults(fields, partial_rotary_factor=0.25)
    common = config_fields.common(
        fields, architecture, max_positions=32768, head_dim=256, kv_heads=4
    )
    common.model.update(norm_offset=1.0)
    bias = fields.flag("attention_bias", False)
    has_attention = _has_attention(fields)
    description = dense(
        common, (None,) * len(has_attention), qkv_bias=bias, output_bias=bias, qk_norm=True
    )
    delta_net = GatedDeltaNetDescription(
        num_key_heads=fields.integer("linear_num_key_heads", 16),
        num_value_heads=fields.integer("linear_num_value_heads", 32, high=MAX_HEADS),
        key_dim=fields.integer("linear_key_head_dim", 128, high=4096),
        value_dim=fields.integer("linear_value_head_dim", 128, high=4096),
        filter_width=fields.integer("linear_conv_kernel_dim", 4, low=2, high=64),
        is_fused=is_fused,
    )
    return _hybrid(description, has_attention, _checked(delta_net, fields.source))


def _qwen3_5(fields: Fields) -> ModelDescription:
    return _described(fields, "qwen3.5")


def _shared(fields: Fields, description: ModelDescription, **settings: Any) -> ExpertsDescription:
    return config_fields.experts(
        fields,
        description,
        intermediate_size=fields.integer("moe_intermediate_size", 512),
        shared_size=fields.integer("shared_expert_intermediate_size", 512),
        **settings,
    )


def _qwen3_5_moe(fields: Fields) -> ModelDescription:
    filled = config_fields.with_defaults(
        fields, num_experts=256, intermediate_size=1, num_key_value_heads=2
    )
    description = _described(filled, "qwen3.5moe")
    experts = _shared(filled, description, top_k=8)
    return with_experts(description, [experts] * description.num_layers)


def _qwen3_next(fields: Fields) -> ModelDescription:
    filled = config_fields.with_defaults(
        fields, num_experts=512, intermediate_size=5632, num_key_value_heads=2
    )
    description = _described(filled, "qwen3next", is_fused=True)
    experts = _shared(
        filled, description, top_k=10, renormalise=fields.flag("norm_topk_prob", True)
    )
    return with_experts(description, config_fields.sparse_layers(fields, description, experts))


def _common_name(name: str) -> str | None:
    return None if name.startswith(LEFT_ASIDE) else name.replace(".dt_bias", ".dt.bias")


def _gguf(source: GGUFSource) -> ModelDescription:
    own, is_next = source.own, source.architecture == "qwen3next"
    # Layers that predict several tokens stand behind the others.
    num_layers = source.num_layers - own.integer("nextn_predict_layers", 0, low=0)
    interval = own.integer("full_attention_interval", INTERVAL)
    has_attention = tuple((layer + 1) % interval == 0 for layer in range(num_layers))
    first = interval - 1  # with attention
    common = gguf_fields.common(source)
    common.layer.update(
        qk_norm=True,
        qkv_bias=source.has(f"blk.{first}.attn_q.bias"),
        output_bias=source.has(f"blk.{first}.attn_output.bias"),
    )
    description = dense(common, (None,) * num_layers)
    value_heads = own.integer("ssm.time_step_rank", high=MAX_HEADS)
    value_size = own.integer("ssm.inner_size")
    if value_size % value_heads:
        raise own.wrong("ssm.inner_size", value_size, f"a multiple of {value_heads} value heads")
    delta_net = GatedDeltaNetDescription(
        num_key_heads=own.integer("ssm.group_count"),
        num_value_heads=value_heads,
        key_dim=own.integer("ssm.state_size", high=4096),
        value_dim=value_size // value_heads,
        filter_width=own.integer("ssm.conv_kernel", low=2, high=64),
        heads_in_turn=not is_next,
        decay_is_log=False,
        is_fused=source.has("blk.0.ssm_in.weight"),
        gates_fused=source.has("blk.0.ssm_ba.weight"),
    )
    hybrid = _hybrid(description, has_attention, _checked(delta_net, own.source))
    experts = gguf_fields.experts(source, hybrid)
    shared_size = own.optional_integer("expert_shared_feed_forward_length") or 0
    return with_experts(
        hybrid, [e if e is None else replace(e, shared_size=shared_size) for e in experts]
    )


_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_in": "linear_attn.in_proj_qkvz",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt": "linear_attn.dt",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}


def _adjusted(tensor: TensorInfo, part: str, description: ModelDescription) -> TensorInfo:
    if part == "ffn_gate_inp_shexp" and len(tensor.shape) == 1:
        return replace(tensor, shape=(1, *tensor.shape))  # a single row
    return tensor


def _gguf_family(architecture: str) -> GGUFFamily:
    return GGUFFamily(architecture=architecture, describe=_gguf, names=_NAMES, adjusted=_adjusted)


QWEN3_5 = Family(
    model_type="qwen3_5_text",
    describe=_qwen3_5,
    text_of=("qwen3_5",),
    common_name=_common_name,
    gguf=_gguf_family("qwen35"),
)
QWEN3_5_MOE = Family(
    model_type="qwen3_5_moe_text",
    describe=_qwen3_5_moe,
    text_of=("qwen3_5_moe",),
    common_name=_common_name,
    gguf=_gguf_family("qwen35moe"),
)
QWEN3_NEXT = Family(
    model_type="qwen3_next",
    describe=_qwen3_next,
    common_name=_common_name,
    gguf=_gguf_family("qwen3next"),
)
