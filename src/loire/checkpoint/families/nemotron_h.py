"""Nemotron-H, Nemotron Nano 2 and 3: each layer is Mamba-2, attention without positions, an MLP, or
experts, and nothing else. MLPs have no gate, but a squared ReLU.

transformers holds the steps of a prompt above time_step_min, and those of generated tokens not. The
models were not trained so: here, as in llama.cpp and vLLM, time_step_limit alone counts.
"""

import re
from dataclasses import replace

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import MAX_EXPERTS, MAX_HEADS, dense, without_rope
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.families.mamba2 import (
    GGUF_NAMES,
    check_silu,
    gguf_adjusted,
    gguf_mamba2,
    kinds,
    mamba2,
    step_limits,
)
from loire.checkpoint.feed_forward import ExpertsDescription, FeedForwardDescription, Routing
from loire.checkpoint.fields import Fields
from loire.checkpoint.mixers import MixerDescription
from loire.checkpoint.recurrent_mixers import Mamba2Description

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Of hybrid_override_pattern."""


def _single_parts(
    description: ModelDescription,
    layer_kinds: tuple[str, ...],
    mixer: Mamba2Description | None,
    experts: ExpertsDescription | None,
    source: str,
) -> ModelDescription:
    """Of each layer the part that its kind says, out of attention and an MLP in every layer."""
    if not {"mamba", "attention"} & set(layer_kinds):
        raise CheckpointError(f"{source}: no layer is attention or Mamba-2")
    description = without_rope(description, range(description.num_layers))

    def layer(given: LayerDescription, kind: str) -> LayerDescription:
        mixers: dict[str, MixerDescription | None] = {"mamba": mixer, "attention": given.mixer}
        others: dict[str, FeedForwardDescription | None] = {
            "mlp": given.feed_forward,
            "moe": experts,
        }
        return LayerDescription(
            mixer=mixers.get(kind), feed_forward=others.get(kind), norms="single"
        )

    pairs = zip(description.layers, layer_kinds, strict=True)
    return replace(description, layers=tuple(layer(*pair) for pair in pairs))


def _kinds(fields: Fields) -> tuple[str, ...]:
    pattern = fields.values.get("hybrid_override_pattern")
    for key in ("layers_block_type", "layer_types"):
        if fields.values.get(key) is not None:
            found = kinds(fields, key, fields.values[key], tuple(_LETTERS.values()))
            break
    else:
        if not isinstance(pattern, str) or not pattern or set(pattern) - _LETTERS.keys():
            letters = ", ".join(_LETTERS)
            raise fields.wrong("hybrid_override_pattern", pattern, f"a text of {letters}")
        found = tuple(_LETTERS[letter] for letter in pattern)
    count = fields.optional_integer("num_hidden_layers")
    if count not in (None, len(found)):
        raise CheckpointError(
            f"{fields.source}: num_hidden_layers is {count}, but there are kinds of {len(found)}"
        )
    return found


def _mamba2(fields: Fields) -> Mamba2Description:
    check_silu(fields, "mamba_hidden_act")
    least, most = step_limits(fields)
    return mamba2(
        fields.source,
        num_heads=fields.integer("mamba_num_heads", 128, high=MAX_HEADS),
        num_groups=fields.integer("n_groups", 8),
        head_dim=fields.integer("mamba_head_dim", 64, high=4096),
        state_dim=fields.integer("ssm_state_size", 128, high=4096),
        filter_width=fields.integer("conv_kernel", 4, low=2, high=64),
        filter_bias=fields.flag("use_conv_bias", True),
        bias=fields.flag("use_bias", False),
        least_step=least,
        most_step=most,
    )


def _routing(fields: Fields, count_key: str) -> Routing:
    count = fields.integer(count_key, 8, high=MAX_EXPERTS)
    try:
        return Routing(
            num_experts=count,
            top_k=fields.integer("num_experts_per_tok", 2),
            scores="sigmoid",
            renormalise=fields.flag("norm_topk_prob", True),
            scale=fields.number("routed_scaling_factor", 1.0, low=1e-3, high=1e3),
            num_groups=fields.integer("n_group", 1),
            chosen_groups=fields.integer("topk_group", 1),
        )
    except ValueError as error:
        raise CheckpointError(f"{fields.source}: {error}") from error


def _experts(fields: Fields) -> ExpertsDescription:
    if fields.flag("mlp_bias", False):
        raise UnsupportedModelError(f"{fields.source}: mlp_bias is not supported with experts")
    return ExpertsDescription(
        routing=_routing(fields, "n_routed_experts"),
        intermediate_size=fields.integer("moe_intermediate_size", 7688),
        activation="squared_relu",
        choice_bias=True,
        shared_size=fields.integer("moe_shared_expert_intermediate_size", 7688),
        shared_gate=False,
        latent_size=fields.optional_integer("moe_latent_size") or 0,
    )


def _described(fields: Fields) -> ModelDescription:
    layer_kinds = _kinds(fields)
    activation = fields.text("mlp_hidden_act", "relu2")
    if activation != "relu2":
        raise UnsupportedModelError(
            f"{fields.source}: mlp_hidden_act {activation!r} is not supported"
        )
    filled = config_fields.with_defaults(
        fields,
        bos_token_id=1,
        eos_token_id=2,
        intermediate_size=21504,
        head_dim=fields.values.get("attention_head_dim"),  # its name in Nemotron-H 8B and 56B
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    eps = fields.number("layer_norm_epsilon", 1e-5, low=0.0, high=1.0)
    filled = Fields({**filled.values, "rms_norm_eps": eps}, fields.source)
    common = config_fields.common(filled, "nemotron_h", max_positions=4096, head_dim=128)
    common.layer.update(activation="squared_relu", mlp_bias=fields.flag("mlp_bias", False))
    return _single_parts(
        dense(common, (None,) * len(layer_kinds)),
        layer_kinds,
        _mamba2(fields) if "mamba" in layer_kinds else None,
        _experts(fields) if "moe" in layer_kinds else None,
        fields.source,
    )


_MAMBA2 = ("in_proj", "out_proj", "conv1d", "norm", "A_log", "D")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_TOP = {
    "embeddings.weight": "model.embed_tokens.weight",
    "norm_f.weight": "model.norm.weight",
}


def _common_name(name: str) -> str:
    inner = name.removeprefix("backbone.").removeprefix("model.")
    if inner in _TOP:
        return _TOP[inner]
    match = re.fullmatch(r"(layers\.\d+)\.(mixer\.)?(\w+)(.*)", inner)
    if match is None:
        return name
    layer, part, rest = f"model.{match[1]}", match[3], match[4]
    if match[2] is None:
        return f"{layer}.{part}{rest}"
    if part == "dt_bias":
        return f"{layer}.mamba.dt.bias"
    if part in _MAMBA2:
        return f"{layer}.mamba.{part}{rest}"
    if part in _ATTENTION:
        return f"{layer}.self_attn.{part}{rest}"
    return f"{layer}.mlp.{part.replace('shared_experts', 'shared_expert')}{rest}"


def _gguf_experts(source: GGUFSource) -> ExpertsDescription:
    own = source.own
    count = own.integer("expert_count", high=MAX_EXPERTS)
    groups = own.integer("expert_group_count", 1)
    routing = Routing(
        num_experts=count,
        top_k=own.integer("expert_used_count", high=count),
        scores="sigmoid",
        renormalise=own.flag("expert_weights_norm", False),
        scale=own.number("expert_weights_scale", 1.0, low=1e-3, high=1e3),
    )
    if groups > 1:
        # The files do not say how many of them a token may choose from.
        raise UnsupportedModelError(f"{own.source}: {groups} groups of experts are not supported")
    return ExpertsDescription(
        routing=routing,
        intermediate_size=own.integer("expert_feed_forward_length"),
        activation="squared_relu",
        choice_bias=True,
        shared_size=own.integer("expert_shared_feed_forward_length"),
        shared_gate=False,
        latent_size=own.optional_integer("moe_latent_size") or 0,
    )


def _gguf_kind(source: GGUFSource, index: int) -> str:
    """Of a layer, by the tensors that it has."""
    for part, kind in (("ssm_in", "mamba"), ("attn_q", "attention"), ("ffn_gate_inp", "moe")):
        if source.has(f"blk.{index}.{part}.weight"):
            return kind
    return "mlp"


def _gguf(source: GGUFSource) -> ModelDescription:
    # Layers that predict several tokens stand behind the others.
    count = source.num_layers - source.own.integer("nextn_predict_layers", 0, low=0)
    layer_kinds = tuple(_gguf_kind(source, index) for index in range(count))
    source = gguf_fields.with_largest(source, "attention.head_count_kv", "feed_forward_length")
    # llama.cpp reads the key of another norm's eps; files may have both.
    given = source.own.values
    eps = given.get("attention.layer_norm_epsilon", given.get("attention.layer_norm_rms_epsilon"))
    own = Fields({**given, "attention.layer_norm_rms_epsilon": eps}, source.own.source)
    source = replace(source, own=own)
    common = gguf_fields.common(source)

    def has_bias(kind: str, part: str) -> bool:
        return kind in layer_kinds and source.has(f"blk.{layer_kinds.index(kind)}.{part}.bias")

    common.layer.update(
        activation="squared_relu",
        qkv_bias=has_bias("attention", "attn_q"),
        output_bias=has_bias("attention", "attn_output"),
        mlp_bias=has_bias("mlp", "ffn_up"),
    )
    return _single_parts(
        dense(common, (None,) * count),
        layer_kinds,
        gguf_mamba2(source, layer_kinds.index("mamba")) if "mamba" in layer_kinds else None,
        _gguf_experts(source) if "moe" in layer_kinds else None,
        source.own.source,
    )


def _gguf_family(architecture: str) -> GGUFFamily:
    return GGUFFamily(
        architecture=architecture,
        describe=_gguf,
        names={
            **GGUF_NAMES,
            "attn_norm": "norm",
            "ffn_up_shexp": "mlp.shared_expert.up_proj",
            "ffn_down_shexp": "mlp.shared_expert.down_proj",
            "exp_probs_b": "mlp.gate.e_score_correction",
            "ffn_latent_down": "mlp.fc1_latent_proj",
            "ffn_latent_up": "mlp.fc2_latent_proj",
        },
        adjusted=gguf_adjusted,
    )


NEMOTRON_H = Family(
    model_type="nemotron_h",
    describe=_described,
    common_name=_common_name,
    gguf=_gguf_family("nemotron_h"),
)
NEMOTRON_H_MOE_FILES = _gguf_family("nemotron_h_moe")
"""GGUF files of models with experts, which have an architecture of their own."""
