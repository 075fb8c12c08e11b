"""Reading GGUF metadata: what most families share.

Facts about the files come from llama.cpp's converter.
"""

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families.common import MAX_EXPERTS, MAX_LAYERS, Common
from loire.checkpoint.feed_forward import ExpertsDescription, Routing, Scores
from loire.checkpoint.fields import MAX_POSITIONS, Fields
from loire.checkpoint.gguf_file import GGUFFile, numbers
from loire.checkpoint.mixers import RopeDescription
from loire.checkpoint.rope_config import longrope_attention_factor, stretched_window

TOP: Mapping[str, str | None] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    # Part of the description:
    "rope_freqs.weight": None,
    "rope_factors_long.weight": None,
    "rope_factors_short.weight": None,
}
"""Tensors outside the layers -> common names; None is left aside."""
PARTS: Mapping[str, str | None] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
"""Parts of layers, by their names in a file."""
NORMS_AROUND: Mapping[str, str | None] = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Other names of norms, where they stand before and after a part."""


@dataclass(frozen=True, slots=True)
class GGUFSource:
    """A file's metadata, to be read with checks."""

    file: GGUFFile
    top: Fields
    """All keys."""
    own: Fields
    """Those of its architecture, without the prefix."""
    architecture: str

    @classmethod
    def of(cls, file: GGUFFile) -> "GGUFSource":
        """Raises CheckpointError where the file names no architecture."""
        top = Fields(file.metadata, str(file.path))
        architecture = top.text("general.architecture")
        prefix = architecture + "."
        keys = (key for key in file.metadata if key.startswith(prefix))
        own = {key.removeprefix(prefix): file.metadata[key] for key in keys}
        return cls(file, top, Fields(own, f"{file.path}, {architecture}"), architecture)

    @property
    def num_layers(self) -> int:
        """How many the model has."""
        return self.own.integer("block_count", high=MAX_LAYERS)

    def has(self, tensor: str) -> bool:
        """Whether there is a tensor of this name."""
        return tensor in self.file.tensors


def with_largest(source: GGUFSource, *keys: str) -> GGUFSource:
    """The same, but that keys which are given layer by layer, 0 where a layer has nothing of it,
    say what the others have."""
    values = dict(source.own.values)
    for key in keys:
        given = values.get(key)
        if isinstance(given, array):
            values[key] = max((int(value) for value in given), default=0)
    return replace(source, own=Fields(values, source.own.source))


def common(source: GGUFSource) -> Common:
    """What all families share."""
    own, path = source.own, source.file.path
    hidden, heads = own.integer("embedding_length"), own.integer("attention.head_count")
    kv_heads = own.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{path}: {heads} query heads are not a multiple of {kv_heads} key/value heads"
        )
    head_dim = own.integer("attention.key_length", hidden // heads, high=4096)
    value_dim = own.integer("attention.value_length", head_dim, high=4096)
    if value_dim != head_dim:
        raise UnsupportedModelError(
            f"{path}: keys have {head_dim} dimensions per head and values {value_dim}; "
            f"Loire needs them equal"
        )
    embedding = source.file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{path} has no tensor 'token_embd.weight' of two dimensions")
    rotary = rope(source, head_dim)
    positions = own.integer("context_length", high=MAX_POSITIONS)
    longest = stretched_window(rotary, positions) if rotary.scaling == "yarn" else positions
    model = {
        "architecture": source.architecture,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "max_positions": longest,
        "usual_positions": positions if longest > positions else None,
        "norm_eps": own.number("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
        "tied_embeddings": not source.has("output.weight"),
        "logit_softcap": own.optional_number("final_logit_softcapping", low=1e-3, high=1e6),
        "bos_token_id": source.top.optional_integer("tokenizer.ggml.bos_token_id", low=0),
        "dtype": "bfloat16",
    }
    layer = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": _intermediate_size(own),
        "rope": rotary,
        "qkv_bias": source.has("blk.0.attn_q.bias") or source.has("blk.0.attn_qkv.bias"),
        "output_bias": source.has("blk.0.attn_output.bias"),
        "mlp_bias": source.has("blk.0.ffn_down.bias"),
        "qk_norm": source.has("blk.0.attn_q_norm.weight"),
        "attention_softcap": own.optional_number("attn_logit_softcapping", low=1e-3, high=1e6),
    }
    return Common(model, layer)


def _intermediate_size(own: Fields) -> int:
    """Of an MLP; a model of nothing but experts may have none."""
    of_experts = own.optional_integer("expert_feed_forward_length")
    if of_experts is None:
        return own.integer("feed_forward_length")
    return own.integer("feed_forward_length", of_experts)


def window(source: GGUFSource, default: int = 0) -> int | None:
    """The window of the layers that have one. Phi-3 files have 0 for none."""
    return source.own.integer("attention.sliding_window", default, low=0) or None


def windows(source: GGUFSource, default: int = 0, *, period: int) -> tuple[int | None, ...]:
    """Windows by the pattern in the file, or else in all layers but the last of every period."""
    size, count = window(source, default), source.num_layers
    key = "attention.sliding_window_pattern"
    pattern = source.own.values.get(key)
    if isinstance(pattern, array):
        if len(pattern) < count:
            raise source.own.wrong(key, list(pattern), f"{count} flags")
        return tuple(size if pattern[layer] else None for layer in range(count))
    period = source.own.integer(key, period)
    return tuple(size if layer % period < period - 1 else None for layer in range(count))


def uniform_windows(source: GGUFSource) -> tuple[int | None, ...]:
    """The same window in all layers."""
    return (window(source),) * source.num_layers


def experts(
    source: GGUFSource,
    description: ModelDescription,
    *,
    scores: Scores = "softmax",
    renormalise: bool = True,
) -> list[ExpertsDescription | None]:
    """Of the layers that have a router; None for the others. scores: of the routing.

    renormalise: as llama.cpp does in nearly all families, whatever the model's makers did.
    """
    own, num_layers = source.own, description.num_layers
    count = own.integer("expert_count", 0, low=0, high=MAX_EXPERTS)
    if not count:
        return [None] * num_layers
    top_k = own.integer("expert_used_count", high=count)
    size = own.integer("expert_feed_forward_length", own.integer("feed_forward_length"))
    routing = Routing(num_experts=count, top_k=top_k, scores=scores, renormalise=renormalise)
    found = ExpertsDescription(routing=routing, intermediate_size=size)
    routed = (source.has(f"blk.{index}.ffn_gate_inp.weight") for index in range(num_layers))
    return [found if has_router else None for has_router in routed]


def interleaved_queries_and_keys(
    tensor: TensorInfo, part: str, description: ModelDescription
) -> TensorInfo:
    """Where the converter permutes the rows of queries and keys, biases included."""
    attention = description.attentions[0]
    heads = {"attn_q": attention.num_heads, "attn_k": attention.num_kv_heads}
    return replace(tensor, interleaved_heads=heads.get(part, 0))


def rope(source: GGUFSource, head_dim: int) -> RopeDescription:
    """The rotary embedding that the metadata and the tensors of factors tell."""
    file, own = source.file, source.own
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


def plain_rope(rope: RopeDescription) -> RopeDescription:
    """The same without stretching."""
    return RopeDescription(theta=rope.theta, rotary_dim=rope.rotary_dim)


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
