"""What GGUF metadata says of a model, and its tensor names translated to the common ones.

Facts about the families come from llama.cpp's converter: which of them permute the rows of
queries and keys, which fold the +1 of Gemma's norms into the weights, and what they leave out.
"""

import math
import re
from array import array
from collections.abc import Mapping
from typing import Any

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription, dense_layers, with_experts
from loire.checkpoint.expert_tensors import taken_apart
from loire.checkpoint.feed_forward import ExpertsDescription
from loire.checkpoint.fields import MAX_POSITIONS, Fields
from loire.checkpoint.gguf_file import GGUFFile, numbers
from loire.checkpoint.mixers import RopeDescription
from loire.checkpoint.rope_config import longrope_attention_factor

FAMILIES = ("gemma2", "gemma3", "llama", "phi3", "qwen2", "qwen3", "qwen3moe")
MAX_EXPERTS = 4096
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
"""Tokens that end an answer in the supported families, whether or not the metadata names them."""

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def describe(file: GGUFFile) -> ModelDescription:
    """The description of a GGUF model. Raises UnsupportedModelError for another family."""
    top = Fields(file.metadata, str(file.path))
    architecture = top.text("general.architecture")
    if architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"{file.path}: architecture {architecture!r} is not supported; "
            f"Loire runs {', '.join(FAMILIES)}"
        )
    prefix = architecture + "."
    own = Fields(
        {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)},
        f"{file.path}, {architecture}",
    )
    if top.integer("split.count", 1) > 1:
        raise UnsupportedModelError(
            f"{file.path} is one of {file.metadata['split.count']} parts of a model; "
            f"join them first (llama-gguf-split --merge)"
        )
    hidden, heads = own.integer("embedding_length"), own.integer("attention.head_count")
    kv_heads = own.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{file.path}: {heads} query heads are not a multiple of {kv_heads} key/value heads"
        )
    head_dim = own.integer("attention.key_length", hidden // heads, high=4096)
    value_dim = own.integer("attention.value_length", head_dim, high=4096)
    if value_dim != head_dim:
        raise UnsupportedModelError(
            f"{file.path}: keys have {head_dim} dimensions per head and values {value_dim}; "
            f"Loire needs them equal"
        )
    num_layers = own.integer("block_count", high=10_000)
    is_gemma = architecture.startswith("gemma")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path} has no tensor 'token_embd.weight' of two dimensions")
    local_rope = None
    if architecture == "gemma3":
        theta = own.number("rope.freq_base_swa", 10000.0, low=1.5, high=1e12)
        local_rope = RopeDescription(theta=theta, rotary_dim=head_dim)
    layers = dense_layers(
        _windows(architecture, own, num_layers),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=own.integer("feed_forward_length"),
        rope=_rope(file, own, head_dim),
        local_rope=local_rope,
        query_scale=_query_scale(architecture, num_layers, hidden, heads, head_dim),
        activation="gelu_tanh" if is_gemma else "silu",
        qkv_bias="blk.0.attn_q.bias" in file.tensors or "blk.0.attn_qkv.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        attention_softcap=own.optional_number("attn_logit_softcapping", low=1e-3, high=1e6),
        norms="around" if is_gemma else "before",
    )
    description = ModelDescription(
        architecture=architecture,
        vocab_size=embedding.shape[0],
        hidden_size=hidden,
        max_positions=own.integer("context_length", high=MAX_POSITIONS),
        norm_eps=own.number("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
        layers=layers,
        tied_embeddings="output.weight" not in file.tensors,
        embedding_scale=hidden**0.5 if is_gemma else 1.0,
        logit_softcap=own.optional_number("final_logit_softcapping", low=1e-3, high=1e6),
        bos_token_id=top.optional_integer("tokenizer.ggml.bos_token_id", low=0),
        eos_token_ids=_eos(file.metadata),
        dtype="bfloat16",
    )
    return with_experts(description, _experts(file, own, description))


def _experts(
    file: GGUFFile, own: Fields, description: ModelDescription
) -> list[ExpertsDescription | None]:
    """Of the layers that have them (qwen3moe; llama for Mixtral's models)."""
    count = own.integer("expert_count", 0, low=0, high=MAX_EXPERTS)
    if not count:
        return [None] * description.num_layers
    top_k = own.integer("expert_used_count", high=count)
    size = own.integer("expert_feed_forward_length", own.integer("feed_forward_length"))
    # llama.cpp renormalises in these families, whatever the model's makers did.
    experts = ExpertsDescription(num_experts=count, top_k=top_k, intermediate_size=size)
    routed = (f"blk.{index}.ffn_gate_inp.weight" for index in range(description.num_layers))
    return [experts if name in file.tensors else None for name in routed]


def tensors(file: GGUFFile, description: ModelDescription) -> dict[str, TensorInfo]:
    """The file's tensors under their common names.

    Raises CheckpointError, naming it, for a tensor that has no place in the model.
    """
    found: dict[str, TensorInfo] = {}
    for name, tensor in file.tensors.items():
        if name in _ROPE_TENSORS:
            continue  # part of the description
        common = _common_name(name, description)
        if common is None:
            raise CheckpointError(f"{file.path}: tensor {name!r} has no place in this model")
        found[common] = TensorInfo(
            name=common,
            shape=tensor.shape,
            format=tensor.format,
            path=file.path,
            offset=tensor.offset,
            num_bytes=tensor.num_bytes,
            interleaved_heads=_interleaved_heads(name, description),
        )
    return taken_apart(found)


def _interleaved_heads(name: str, description: ModelDescription) -> int:
    """Llama is the only family whose rows the converter permutes, biases included."""
    if description.architecture != "llama":
        return 0
    attention, part = description.attentions[0], name.split(".")[-2]
    return {"attn_q": attention.num_heads, "attn_k": attention.num_kv_heads}.get(part, 0)


def _common_name(name: str, description: ModelDescription) -> str | None:
    if name in _TOP:
        return _TOP[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None:
        return None
    layer, part, kind = match.groups()
    if part == "ffn_norm":
        part = (
            "pre_feedforward_layernorm"
            if description.layers[0].norms == "around"
            else "post_attention_layernorm"
        )
    elif part == "ffn_up" and description.architecture == "phi3":
        part = "mlp.gate_up_proj"
    elif part in _LAYER:
        part = _LAYER[part]
    else:
        return None
    return f"model.layers.{layer}.{part}.{kind}"


def _windows(architecture: str, own: Fields, num_layers: int) -> tuple[int | None, ...]:
    # Phi-3 files have 0 for none; llama.cpp assumes Gemma 2's own window where it is not given.
    default = 4096 if architecture == "gemma2" else 0
    window = own.integer("attention.sliding_window", default, low=0) or None
    if architecture == "gemma2":
        return tuple(window if layer % 2 == 0 else None for layer in range(num_layers))
    if architecture == "gemma3":
        return tuple(window if (layer + 1) % 6 else None for layer in range(num_layers))
    return (window,) * num_layers


def _query_scale(
    architecture: str, num_layers: int, hidden: int, heads: int, head_dim: int
) -> float:
    # The files do not say query_pre_attn_scalar; it is head_dim but in the 27B models.
    is_27b = (architecture, num_layers) in (("gemma2", 46), ("gemma3", 62))
    return float((hidden / heads if is_27b else head_dim) ** -0.5)


def _rope(file: GGUFFile, own: Fields, head_dim: int) -> RopeDescription:
    theta = own.number("rope.freq_base", 10000.0, low=1.5, high=1e12)
    rotary_dim = own.integer("rope.dimension_count", head_dim, high=head_dim)
    if rotary_dim % 2 or head_dim % 2:
        raise own.wrong("rope.dimension_count", rotary_dim, f"even, as head size {head_dim}")
    original = own.optional_integer("rope.scaling.original_context_length", low=2)
    if "rope_factors_short.weight" in file.tensors:
        original = original or own.integer("context_length", low=2)
        factor = own.integer("context_length") / original
        given = own.optional_number("rope.scaling.attn_factor", low=0.0, high=100.0)
        return RopeDescription(
            theta=theta,
            rotary_dim=rotary_dim,
            scaling="longrope",
            original_max_positions=original,
            attention_factor=given or longrope_attention_factor(factor, original),
            short_factors=_floats(file, "rope_factors_short.weight", rotary_dim // 2),
            long_factors=_floats(file, "rope_factors_long.weight", rotary_dim // 2),
        )
    divisors: tuple[float, ...] = ()
    if "rope_freqs.weight" in file.tensors:
        divisors = _floats(file, "rope_freqs.weight", rotary_dim // 2)
    # A factor without a type is linear, as in llama.cpp; scale_linear is its older name.
    scale = own.optional_number("rope.scaling.factor", low=0.0, high=4096.0)
    scale = scale or own.optional_number("rope.scale_linear", low=0.0, high=4096.0)
    kind = own.text("rope.scaling.type", "linear" if scale else "none")
    if kind == "none" or (kind == "linear" and scale in (None, 0.0, 1.0)):
        return RopeDescription(theta=theta, rotary_dim=rotary_dim, frequency_divisors=divisors)
    if divisors:
        raise UnsupportedModelError(
            f"{file.path} has both rope_freqs.weight and rotary scaling {kind!r}"
        )
    factor = own.number("rope.scaling.factor", scale, low=1.0, high=4096.0)
    if kind == "linear":
        return RopeDescription(theta=theta, rotary_dim=rotary_dim, scaling="linear", factor=factor)
    if kind == "yarn":
        return RopeDescription(
            theta=theta,
            rotary_dim=rotary_dim,
            scaling="yarn",
            factor=factor,
            original_max_positions=original or own.integer("context_length"),
            beta_fast=own.number("rope.scaling.yarn_beta_fast", 32.0, low=1e-3, high=1e4),
            beta_slow=own.number("rope.scaling.yarn_beta_slow", 1.0, low=1e-3, high=1e4),
            attention_factor=own.number("rope.scaling.attn_factor", 1.0, low=1e-3, high=100.0)
            * (0.1 * math.log(factor) + 1.0),
        )
    raise UnsupportedModelError(f"{file.path}: rotary scaling {kind!r} is not supported")


def _floats(file: GGUFFile, name: str, count: int) -> tuple[float, ...]:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.format.name != "F32" or tensor.shape != (count,):
        raise CheckpointError(f"{file.path}: {name} should be {count} numbers of type F32")
    with file.path.open("rb") as data:
        data.seek(tensor.offset)
        values = numbers("f", data.read(tensor.num_bytes))
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise CheckpointError(f"{file.path}: {name} holds values that are not positive")
    return tuple(values)


def _eos(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    ids = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    found = [int(value) for value in ids if isinstance(value, int)]
    tokens = metadata.get("tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(kinds, array) and len(kinds) == len(tokens):
        pairs = enumerate(zip(tokens, kinds, strict=True))
        found += [i for i, (token, kind) in pairs if kind == 3 and token in END_OF_TURN]
    return tuple(dict.fromkeys(found))
