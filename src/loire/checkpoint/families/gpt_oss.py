"""gpt-oss: attention with sinks, every other layer with a window, and experts with biases.

In Hugging Face's files the matrices of all experts are one tensor, and the rows of gate and up take
turns: in plain numbers with the inputs first, in MXFP4 with the outputs first.
"""

import re
from dataclasses import replace
from typing import Any

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription, with_experts
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import Common, dense
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.feed_forward import ClampedSwiGLU, ExpertsDescription
from loire.checkpoint.fields import Fields

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_EXPERTS: dict[str, Any] = {"scores": "softmax_of_chosen", "router_bias": True, "bias": True}


def _gpt_oss(fields: Fields) -> ModelDescription:
    filled = config_fields.with_defaults(fields, sliding_window=128, num_local_experts=128)
    if not filled.values.get("rope_scaling") and not filled.values.get("rope_parameters"):
        filled = Fields({**filled.values, "rope_parameters": _YARN}, filled.source)
    common = config_fields.common(
        filled, "gpt-oss", max_positions=131072, theta=150000.0, eps=1e-5, head_dim=64, kv_heads=8
    )
    if common.layer["activation"] != "silu":
        raise UnsupportedModelError(f"{fields.source}: experts with another gate than SiLU")
    bias = fields.flag("attention_bias", True)
    common.layer.update(sinks=True, qkv_bias=bias, output_bias=bias)
    description = dense(common, config_fields.windows(filled, lambda layer: layer % 2 == 0))
    gate = ClampedSwiGLU(
        alpha=fields.number("swiglu_alpha", 1.702, low=1e-3, high=1e3),
        limit=fields.number("swiglu_limit", 7.0, low=1e-3, high=1e6),
    )
    experts = config_fields.experts(filled, description, top_k=4, activation=gate, **_EXPERTS)
    return with_experts(description, [experts] * description.num_layers)


def _common_name(name: str) -> str:
    name = name.replace(".mlp.router.", ".mlp.gate.")
    name = re.sub(r"(\.mlp\.experts\.\w+_proj)_bias$", r"\1.bias", name)
    return re.sub(r"(\.self_attn\.sinks)$", r"\1.weight", name)


def _adjusted(tensor: TensorInfo) -> TensorInfo:
    if ".mlp.experts." not in tensor.name:
        return tensor
    is_plain = tensor.name.endswith("_proj")
    pairs = 1 if ".gate_up_proj" in tensor.name else 0
    return replace(tensor, inputs_first=is_plain, interleaved_heads=pairs)


def _gguf(source: GGUFSource) -> ModelDescription:
    common: Common = gguf_fields.common(source)
    # The band of YaRN is not rounded in these models, which the files do not say.
    rope = replace(common.layer["rope"], truncate_band=False)
    common.layer.update(sinks=True, rope=rope)
    window = gguf_fields.window(source, 128)
    windows = [window if layer % 2 == 0 else None for layer in range(source.num_layers)]
    description = dense(common, windows)
    experts = gguf_fields.experts(source, description, scores="softmax_of_chosen")
    return with_experts(description, [_with_biases(each) for each in experts])


def _with_biases(experts: ExpertsDescription | None) -> ExpertsDescription | None:
    if experts is None:
        return None
    return replace(experts, activation=ClampedSwiGLU(), router_bias=True, bias=True)


GPT_OSS = Family(
    model_type="gpt_oss",
    describe=_gpt_oss,
    common_name=_common_name,
    adjusted=_adjusted,
    gguf=GGUFFamily(
        architecture="gpt-oss",
        describe=_gguf,
        names={
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks": "self_attn.sinks",
        },
    ),
)
