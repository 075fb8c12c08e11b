"""Gemma 1 to 3. The converter adds to the norms the 1 that their own files leave out."""

from collections.abc import Sequence
from typing import Any

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import Common, dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields
from loire.checkpoint.mixers import RopeDescription
from loire.checkpoint.rope_config import parse_rope


def _gemma(fields: Fields, architecture: str, **defaults: Any) -> Common:
    if fields.flag("use_bidirectional_attention", False):
        raise UnsupportedModelError(f"{fields.source}: bidirectional attention is not supported")
    fields = config_fields.with_defaults(fields, bos_token_id=2, eos_token_id=1)
    bias = fields.flag("attention_bias", False)
    common = config_fields.common(
        fields,
        architecture,
        tied=True,
        head_dim=256,
        kv_heads=4,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        **defaults,
    )
    scalar = fields.number("query_pre_attn_scalar", 256, low=1e-3, high=1e6)
    common.model.update(
        norm_offset=1.0,
        embedding_scale=common.model["hidden_size"] ** 0.5,
        logit_softcap=fields.optional_number("final_logit_softcapping", low=1e-3, high=1e6),
    )
    common.layer.update(
        qkv_bias=bias,
        output_bias=bias,
        norms="around",
        query_scale=scalar**-0.5,
        attention_softcap=fields.optional_number("attn_logit_softcapping", low=1e-3, high=1e6),
    )
    return common


def _gemma1(fields: Fields) -> ModelDescription:
    if fields.flag("use_bidirectional_attention", False):
        raise UnsupportedModelError(f"{fields.source}: bidirectional attention is not supported")
    # Its makers meant the approximation, whatever the first files say; transformers knows.
    name = fields.values.get("hidden_activation") or fields.values.get("hidden_act")
    activation = "gelu_pytorch_tanh" if name in (None, "gelu") else name
    values = {**fields.values, "hidden_act": activation}
    filled = config_fields.with_defaults(
        Fields(values, fields.source), bos_token_id=2, eos_token_id=1
    )
    bias = fields.flag("attention_bias", False)
    common = config_fields.common(
        filled, "gemma", tied=True, max_positions=8192, head_dim=256, kv_heads=16
    )
    common.model.update(norm_offset=1.0, embedding_scale=common.model["hidden_size"] ** 0.5)
    windows = (None,) * config_fields.num_layers(fields)
    return dense(common, windows, qkv_bias=bias, output_bias=bias)


def _gemma2(fields: Fields) -> ModelDescription:
    filled = config_fields.with_defaults(
        fields,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    common = _gemma(filled, "gemma2", max_positions=8192)
    return dense(common, config_fields.windows(filled, lambda layer: layer % 2 == 0))


def _gemma3(fields: Fields) -> ModelDescription:
    # The text_config of the published models leaves out whatever has its default value.
    filled = config_fields.with_defaults(
        fields,
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        sliding_window=4096,
    )
    pattern = filled.integer("sliding_window_pattern", 6)
    common = _gemma(
        filled, "gemma3", max_positions=131072, theta=1e6, rope_layer_type="full_attention"
    )
    windows = config_fields.windows(filled, lambda layer: bool((layer + 1) % pattern))
    if filled.values["sliding_window"] is None:
        # Which rotary embedding a layer has goes by its window.
        raise filled.wrong("sliding_window", None, "a number of tokens")
    local = {key: value for key, value in fields.values.items() if key != "rope_scaling"}
    local["rope_theta"] = fields.values.get("rope_local_base_freq")
    local_rope = parse_rope(
        Fields(local, fields.source),
        head_dim=common.layer["head_dim"],
        max_positions=common.model["max_positions"],
        default_theta=10000.0,
        layer_type="sliding_attention",
    )
    return dense(common, windows, qk_norm=True, local_rope=local_rope)


def _gemma1_gguf(source: GGUFSource) -> ModelDescription:
    common = gguf_fields.common(source)
    common.model["embedding_scale"] = common.model["hidden_size"] ** 0.5
    return dense(common, (None,) * source.num_layers, activation="gelu_tanh")


def _gguf(
    source: GGUFSource, windows: Sequence[int | None], layers_of_27b: int, **changes: Any
) -> ModelDescription:
    common = gguf_fields.common(source)
    hidden = common.model["hidden_size"]
    common.model["embedding_scale"] = hidden**0.5
    # The files do not say query_pre_attn_scalar; it is head_dim but in the 27B models.
    is_27b = source.num_layers == layers_of_27b
    scalar = hidden / common.layer["num_heads"] if is_27b else common.layer["head_dim"]
    settings = {"activation": "gelu_tanh", "norms": "around", "query_scale": float(scalar**-0.5)}
    return dense(common, windows, **settings, **changes)


def _gemma2_gguf(source: GGUFSource) -> ModelDescription:
    # llama.cpp assumes this window where it is not given.
    return _gguf(source, gguf_fields.windows(source, 4096, period=2), layers_of_27b=46)


def _gemma3_gguf(source: GGUFSource) -> ModelDescription:
    head_dim = gguf_fields.common(source).layer["head_dim"]
    windows = gguf_fields.windows(source, period=6)
    theta = source.own.number("rope.freq_base_swa", 10000.0, low=1.5, high=1e12)
    local_rope = RopeDescription(theta=theta, rotary_dim=head_dim)
    return _gguf(source, windows, layers_of_27b=62, local_rope=local_rope)


GEMMA = Family(
    model_type="gemma",
    describe=_gemma1,
    gguf=GGUFFamily(architecture="gemma", describe=_gemma1_gguf),
)
GEMMA2 = Family(
    model_type="gemma2",
    describe=_gemma2,
    gguf=GGUFFamily(architecture="gemma2", describe=_gemma2_gguf, names=gguf_fields.NORMS_AROUND),
)
GEMMA3 = Family(
    model_type="gemma3_text",
    text_of=("gemma3",),
    describe=_gemma3,
    gguf=GGUFFamily(architecture="gemma3", describe=_gemma3_gguf, names=gguf_fields.NORMS_AROUND),
)
