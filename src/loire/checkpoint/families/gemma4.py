"""Gemma 4, of which text alone is read.

Layers with a window and layers that see everything differ in their heads; the last ones may read
the keys and values of earlier ones, and are wider then. Some sizes have embeddings that come per
layer, some have experts beside the dense MLP.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import MAX_EXPERTS
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.feed_forward import (
    BranchDescription,
    ExpertsDescription,
    FeedForwardDescription,
    GatedMLPDescription,
    ParallelDescription,
    PlainActivation,
    Routing,
)
from loire.checkpoint.fields import Fields
from loire.checkpoint.mixers import AttentionDescription, RopeDescription
from loire.checkpoint.per_layer import PerLayerEmbeddingDescription, PerLayerInputDescription
from loire.checkpoint.rope_config import parse_rope

FULL, SLIDING = "full_attention", "sliding_attention"
_ROPE: Mapping[str, Any] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Attention of the layers with a window, or of those without."""

    num_kv_heads: int
    head_dim: int
    rope: RopeDescription
    window: int | None = None
    values_are_keys: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What both kinds of file say of the layers."""

    kinds: Sequence[_Kind]
    """By layer."""
    num_heads: int
    num_shared: int
    """Layers at the end that read the keys and values of earlier ones."""
    inner_sizes: Sequence[int]
    """Of the dense MLPs."""
    activation: PlainActivation
    bias: bool
    experts: ExpertsDescription | None
    per_layer_size: int
    """0: no embeddings per layer."""


def _layers(settings: _Settings, source: str) -> tuple[LayerDescription, ...]:
    """Raises CheckpointError where a layer has nobody to share with."""
    kinds = settings.kinds
    first_shared = len(kinds) - settings.num_shared
    per_layer = None
    if settings.per_layer_size:
        per_layer = PerLayerInputDescription(
            size=settings.per_layer_size, activation=settings.activation
        )
    layers = []
    for index, kind in enumerate(kinds):
        owner = None
        if index >= first_shared:
            like = [
                i for i in range(first_shared) if (kinds[i].window is None) == (not kind.window)
            ]
            if not like:
                raise CheckpointError(
                    f"{source}: layer {index} should share the keys and values of an earlier layer "
                    f"of its kind, but the first {first_shared} have none"
                )
            owner = like[-1]
        layers.append(
            LayerDescription(
                mixer=AttentionDescription(
                    num_heads=settings.num_heads,
                    num_kv_heads=kind.num_kv_heads,
                    head_dim=kind.head_dim,
                    scale=1.0,
                    rope=kind.rope,
                    window=kind.window,
                    qkv_bias=settings.bias,
                    output_bias=settings.bias,
                    qk_norm=True,
                    value_norm=True,
                    values_are_keys=kind.values_are_keys,
                    cache_of=owner,
                ),
                feed_forward=_feed_forward(settings, settings.inner_sizes[index]),
                norms="around",
                per_layer_input=per_layer,
                has_output_scale=True,
            )
        )
    return tuple(layers)


def _feed_forward(settings: _Settings, size: int) -> FeedForwardDescription:
    mlp = GatedMLPDescription(intermediate_size=size, activation=settings.activation)
    if settings.experts is None:
        return mlp
    return ParallelDescription(
        (
            BranchDescription(mlp, "pre_feedforward_layernorm", "post_feedforward_layernorm_1"),
            BranchDescription(settings.experts, None, "post_feedforward_layernorm_2"),
        )
    )


def _experts(count: int, top_k: int, size: int, activation: PlainActivation) -> ExpertsDescription:
    return ExpertsDescription(
        routing=Routing(num_experts=count, top_k=top_k),
        intermediate_size=size,
        activation=activation,
        own_norms=True,
        expert_scales=True,
    )


def _describe(defaults: Mapping[str, Any]) -> Callable[[Fields], ModelDescription]:
    """Reading a config.json with these defaults for what it leaves out."""

    def describe(fields: Fields) -> ModelDescription:
        if fields.values.get("use_bidirectional_attention") not in (None, False, "vision"):
            raise UnsupportedModelError(
                f"{fields.source}: bidirectional attention is not supported"
            )
        filled = config_fields.with_defaults(fields, bos_token_id=2, eos_token_id=1, **defaults)
        if filled.values.get("rope_parameters") is None:
            filled = Fields({**filled.values, "rope_parameters": _ROPE}, fields.source)
        common = config_fields.common(
            filled,
            "gemma4",
            tied=True,
            head_dim=256,
            kv_heads=4,
            activation_key="hidden_activation",
            activation="gelu_pytorch_tanh",
            rope_layer_type=SLIDING,
        )
        windows = [*config_fields.windows(filled, lambda layer: bool((layer + 1) % 6))]
        windows[-1] = None  # whatever the file says, as in transformers
        num_layers, size = len(windows), common.layer["intermediate_size"]
        num_shared = filled.integer("num_kv_shared_layers", 0, low=0, high=num_layers)
        wide = filled.flag("use_double_wide_mlp", False)
        per_layer_size = filled.integer("hidden_size_per_layer_input", 0, low=0, high=2**16)
        local = _Kind(
            num_kv_heads=common.layer["num_kv_heads"],
            head_dim=common.layer["head_dim"],
            rope=common.layer["rope"],
            window=filled.integer("sliding_window"),
        )
        full = _full_kind(filled, local, windows.index(None), common.model["max_positions"])
        if common.layer["num_heads"] % full.num_kv_heads:
            raise filled.wrong(
                "num_global_key_value_heads",
                full.num_kv_heads,
                f"a divisor of num_attention_heads, {common.layer['num_heads']}",
            )
        settings = _Settings(
            kinds=[full if window is None else local for window in windows],
            num_heads=common.layer["num_heads"],
            num_shared=num_shared,
            inner_sizes=[
                2 * size if wide and index >= num_layers - num_shared else size
                for index in range(num_layers)
            ],
            activation=common.layer["activation"],
            bias=filled.flag("attention_bias", False),
            experts=_config_experts(filled, common.layer["activation"]),
            per_layer_size=per_layer_size,
        )
        vocab_size = filled.integer("vocab_size_per_layer_input", common.model["vocab_size"])
        return ModelDescription(
            **common.model,
            layers=_layers(settings, filled.source),
            embedding_scale=common.model["hidden_size"] ** 0.5,
            logit_softcap=filled.optional_number("final_logit_softcapping", low=1e-3, high=1e6),
            per_layer=_per_layer(per_layer_size, vocab_size),
        )

    return describe


def _per_layer(size: int, vocab_size: int) -> PerLayerEmbeddingDescription | None:
    return PerLayerEmbeddingDescription(size=size, vocab_size=vocab_size) if size else None


def _full_kind(fields: Fields, local: _Kind, index: int, max_positions: int) -> _Kind:
    """Of the layers without a window, of which index is one."""
    shares = fields.flag("attention_k_eq_v", False)
    own = fields
    if fields.values.get("per_layer_config") is not None:  # as transformers writes it
        own = fields.section("per_layer_config").section(str(index))
        head_dim = own.integer("head_dim", local.head_dim, high=4096)
        kv_heads = own.integer("num_key_value_heads", local.num_kv_heads)
    else:
        head_dim = own.integer("global_head_dim", 512, high=4096)
        kv_heads = local.num_kv_heads
        if shares:
            kv_heads = own.integer("num_global_key_value_heads", kv_heads)
    return _Kind(
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        values_are_keys=shares,
        rope=parse_rope(
            fields,
            head_dim=head_dim,
            max_positions=max_positions,
            default_theta=1_000_000.0,
            layer_type=FULL,
        ),
    )


def _config_experts(fields: Fields, activation: PlainActivation) -> ExpertsDescription | None:
    if not fields.flag("enable_moe_block", False):
        return None
    count = fields.integer("num_experts", high=MAX_EXPERTS)
    top_k = fields.integer("top_k_experts")
    if top_k > count:
        raise fields.wrong("top_k_experts", top_k, f"at most num_experts, {count}")
    return _experts(count, top_k, fields.integer("moe_intermediate_size"), activation)


_NOT_TEXT = re.compile(r"(model\.)?(vision|audio|embed_vision|embed_audio)[\w]*\.")
_OTHER_NAMES = (
    (".layer_scalar", ".layer_scalar.weight"),
    (".router.proj.", ".mlp.gate."),
    (".router.scale", ".mlp.gate.scale"),
    (".router.per_expert_scale", ".mlp.experts.scale"),
)


def _common_name(name: str) -> str | None:
    if _NOT_TEXT.match(name):
        return None
    for theirs, ours in _OTHER_NAMES:
        name = name.replace(theirs, ours)
    return re.sub(r"(layers\.\d+)\.experts\.", r"\1.mlp.experts.", name)


def _gguf(source: GGUFSource) -> ModelDescription:
    own, num_layers = source.own, source.num_layers
    kv_heads = _per_layer_numbers(own, "attention.head_count_kv", num_layers)
    sizes = _per_layer_numbers(own, "feed_forward_length", num_layers)
    local_layers = own.values.get("attention.sliding_window_pattern")
    if not isinstance(local_layers, Sequence) or len(local_layers) != num_layers:
        raise own.wrong("attention.sliding_window_pattern", local_layers, f"{num_layers} flags")
    first = {"attention.head_count_kv": kv_heads[-1], "feed_forward_length": sizes[0]}
    common = gguf_fields.common(replace(source, own=Fields({**own.values, **first}, own.source)))
    local_dim = own.integer("attention.key_length_swa", high=4096)
    rotary_dim = own.integer("rope.dimension_count_swa", local_dim, high=local_dim)
    local_theta = own.number("rope.freq_base_swa", 10_000.0, low=1.5, high=1e12)
    kinds = [
        _Kind(
            num_kv_heads=kv_heads[index],
            head_dim=local_dim if is_local else common.layer["head_dim"],
            rope=(
                RopeDescription(theta=local_theta, rotary_dim=rotary_dim)
                if is_local
                else common.layer["rope"]
            ),
            window=own.integer("attention.sliding_window") if is_local else None,
            values_are_keys=not is_local and not source.has(f"blk.{index}.attn_v.weight"),
        )
        for index, is_local in enumerate(local_layers)
    ]
    num_experts = own.integer("expert_count", 0, low=0, high=MAX_EXPERTS)
    experts = None
    if num_experts:
        top_k = own.integer("expert_used_count", high=num_experts)
        size = own.integer("expert_feed_forward_length")
        experts = _experts(num_experts, top_k, size, "gelu_tanh")
    per_layer_size = own.integer("embedding_length_per_layer_input", 0, low=0, high=2**16)
    settings = _Settings(
        kinds=kinds,
        num_heads=common.layer["num_heads"],
        num_shared=own.integer("attention.shared_kv_layers", 0, low=0, high=num_layers),
        inner_sizes=sizes,
        activation="gelu_tanh",
        bias=False,
        experts=experts,
        per_layer_size=per_layer_size,
    )
    table = source.file.tensors.get("per_layer_token_embd.weight")
    vocab_size = common.model["vocab_size"] if table is None else table.shape[0]
    return ModelDescription(
        **common.model,
        layers=_layers(settings, own.source),
        embedding_scale=common.model["hidden_size"] ** 0.5,
        per_layer=_per_layer(per_layer_size, vocab_size),
    )


def _per_layer_numbers(own: Fields, key: str, count: int) -> list[int]:
    """One for each layer, of a number for all of them or of a list."""
    value = own.values.get(key)
    if isinstance(value, int):
        return [own.integer(key)] * count
    if not isinstance(value, Sequence) or len(value) != count:
        raise own.wrong(key, value, f"a number or {count} of them")
    return [Fields({key: item}, own.source).integer(key) for item in value]


_GGUF_NAMES: Mapping[str, str | None] = {
    **gguf_fields.NORMS_AROUND,
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "ffn_gate_inp.scale": "mlp.gate.scale",
    "ffn_down_exps.scale": "mlp.experts.scale",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
    "layer_output_scale": "layer_scalar",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
_GGUF_TOP: Mapping[str, str | None] = {
    "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
}
_TEXT: Mapping[str, Any] = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
}

GEMMA4 = Family(
    model_type="gemma4_text",
    text_of=("gemma4",),
    describe=_describe(
        {
            **_TEXT,
            "max_position_embeddings": 131_072,
            "sliding_window": 512,
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 262_144,
        }
    ),
    common_name=_common_name,
    gguf=GGUFFamily(architecture="gemma4", describe=_gguf, names=_GGUF_NAMES, top_names=_GGUF_TOP),
)
GEMMA4_UNIFIED = Family(
    model_type="gemma4_unified_text",
    text_of=("gemma4_unified",),
    describe=_describe({**_TEXT, "max_position_embeddings": 262_144, "sliding_window": 1024}),
    common_name=_common_name,
)
