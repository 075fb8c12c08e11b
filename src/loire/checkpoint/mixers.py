"""What lets a layer's tokens see those before them: attention, and what it shares with the mixers
of recurrent_mixers.py.

A mixer's description says which weights it has, what it keeps of each token, and how much it
computes and reads; loire.models.mixers builds it.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from loire.base.config import DTYPE_BYTES
from loire.checkpoint.weights import Matrix, Place, Vector

RopeScaling = Literal["none", "linear", "llama3", "yarn", "longrope", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeDescription:
    """Rotary position embedding (Su et al. 2021) and how it is stretched.

    Attributes:
        scaling: off is no rotation at all: every angle is zero (NO_ROPE).
        rotary_dim: leading dimensions of a head that are rotated (all, unless partial).
        factor: by how much the window is stretched (linear, llama3, yarn).
        low_freq_factor, high_freq_factor: llama3's bounds of the band that is interpolated.
        original_max_positions: window before stretching, in tokens.
        beta_fast, beta_slow: yarn's bounds, in rotations over the original window.
        truncate_band: yarn rounds its band outwards to whole dimensions.
        attention_factor: scales cos and sin (yarn, longrope); None is the method's own formula.
        short_factors, long_factors: longrope's divisors per frequency, rotary_dim / 2 each.
        frequency_divisors: divisors per frequency that are given outright (GGUF's rope_freqs);
            dimensions whose divisor is infinite are not rotated.
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate_band: bool = True
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    frequency_divisors: tuple[float, ...] = ()


NO_ROPE = RopeDescription(theta=10000.0, rotary_dim=2, scaling="off")
"""Of layers that are not told positions (NoPE, Kazemnejad et al. 2023)."""


@dataclass(frozen=True, slots=True)
class QueryGrowth:
    """Queries grow with their position: times 1 + beta * ln(1 + floor(position / period)).

    Nakanishi 2025, "Scalable-softmax"; Llama 4 and Ministral 3.
    """

    beta: float
    period: int


@dataclass(frozen=True, slots=True)
class StateArrays:
    """Arrays of float32, all of one shape, that every token changes."""

    count: int
    shape: tuple[int, ...]

    @property
    def array_bytes(self) -> int:
        """Of one of them."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheNeed:
    """What a mixer keeps: of each token that many vectors of one size, or a state instead."""

    kind: Literal["full", "window", "latent", "state"]
    """full: keys and values of every token; window: of the latest tokens only; latent: a vector of
    every token that is key and value in one; state: nothing of tokens."""
    num_vectors: int = 0
    vector_size: int = 0
    window: int | None = None
    """Tokens that are ever read again, the newest included."""
    state: tuple[StateArrays, ...] = ()

    @property
    def state_parts(self) -> tuple[int, ...]:
        """Bytes of the state's arrays, in order."""
        return tuple(part.array_bytes for part in self.state for _ in range(part.count))

    @property
    def elements_per_token(self) -> int:
        """Numbers."""
        return self.num_vectors * self.vector_size

    def bytes_per_token(self, dtype: str) -> int:
        """In a cache of dtype; int8 has a float32 scale for each vector."""
        if dtype == "int8":
            return self.num_vectors * (self.vector_size + 4)
        return self.elements_per_token * DTYPE_BYTES[dtype]

    def tokens_read(self, context: float) -> float:
        """Tokens that one query at the end of a context reads."""
        if self.kind == "state":
            return 0
        return context if self.window is None else min(context, self.window)


def causal_pairs(prompt: int, window: int | None = None) -> int:
    """Pairs of query and key in a prompt, under a causal mask with a window."""
    if window is None or window >= prompt:
        return prompt * (prompt + 1) // 2
    return window * (window + 1) // 2 + (prompt - window) * window


class MixerDescription(Protocol):
    """One mixer, apart from where it stands."""

    @property
    def cache_of(self) -> int | None:
        """The earlier layer whose cache it reads; None for its own."""
        ...

    @property
    def cache(self) -> CacheNeed | None:
        """What it keeps; None if it keeps nothing or reads another layer's."""
        ...

    @property
    def activation_elements(self) -> int:
        """Numbers per token that live at once between its products."""
        ...

    def operations(self, context: float) -> float:
        """Of one query over that many tokens, its products with weights left aside."""
        ...

    def prompt_operations(self, prompt: int) -> float:
        """The same of all queries of a prompt."""
        ...

    @property
    def remembered_outputs(self) -> int:
        """Outputs of its products that go into the cache, per token."""
        ...

    def weights(self, place: Place) -> object:
        """A dataclass of its weights."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Weights of attention."""

    qkv: Matrix
    """Of queries alone, where keys and values are another layer's; of keys and values alone, where
    there is query_gate."""
    query_gate: Matrix | None
    """Queries of all heads, then the gates of all heads."""
    output: Matrix
    query_norm: Vector | None
    key_norm: Vector | None
    sinks: Vector | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionDescription:
    """Self-attention with grouped heads.

    Attributes:
        scale: scores are multiplied by it; usually head_dim ** -0.5.
        window: how many latest positions a token sees (itself included), or None for all.
        qk_norm: RMSNorm over each head of queries and keys before the rotation.
        norms_span_heads: it is over all heads at once.
        norm_weights: it has weights.
        query_growth: what queries are multiplied by after it, if anything.
        pairs_together: rotary pairs stand side by side in both kinds of file, else half the rotated
            dimensions apart; not with norms of heads or an output gate.
        sinks: each query head has a score of its own, without a key, in its softmax (Xiao et al.
            2023, "Efficient streaming language models with attention sinks"); gpt-oss trains them.
        value_norm: RMSNorm over each head of values too, without a weight (with qk_norm).
        values_are_keys: values are the keys before norm and rotation.
        softcap: scores x become softcap * tanh(x / softcap).
        cache_of: the earlier layer whose keys and values it reads; None for its own.
        output_gate: what attention gives is multiplied by the sigmoid of a gate, which stands
            beside each head's query in their product; not with cache_of.
        gate_apart: the gate has a product of its own in the file.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeDescription
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    norms_span_heads: bool = False
    norm_weights: bool = True
    value_norm: bool = False
    values_are_keys: bool = False
    softcap: float | None = None
    query_growth: QueryGrowth | None = None
    cache_of: int | None = None
    output_gate: bool = False
    gate_apart: bool = False
    pairs_together: bool = False

    @property
    def query_size(self) -> int:
        """Elements of all query heads of one token."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of all key heads of one token; as many again for the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def cache(self) -> CacheNeed | None:
        """Keys and values."""
        if self.cache_of is not None:
            return None
        return CacheNeed(
            kind="full" if self.window is None else "window",
            num_vectors=2 * self.num_kv_heads,
            vector_size=self.head_dim,
            window=self.window,
        )

    @property
    def activation_elements(self) -> int:
        """Queries, keys, values, the output and its gate."""
        return (3 if self.output_gate else 2) * self.query_size + 2 * self.kv_size

    def operations(self, context: float) -> float:
        """Scores and the sum of values."""
        seen = context if self.window is None else min(context, self.window)
        return 4.0 * self.query_size * seen

    def prompt_operations(self, prompt: int) -> float:
        """Of every pair of query and key under a causal mask with a window."""
        return 4.0 * self.query_size * causal_pairs(prompt, self.window)

    @property
    def remembered_outputs(self) -> int:
        """Keys and values, unless they are another layer's."""
        return len(self._kept_parts) * self.kv_size

    @property
    def _kept_parts(self) -> str:
        """Of the projection, by their letters: those that go into the cache."""
        if self.cache_of is not None:
            return ""
        return "k" if self.values_are_keys else "kv"

    def unread_names(self, place: Place) -> tuple[str, ...]:
        """Tensors that some files hold although the layer has no use for them: keys and values of
        one that reads another layer's, those of values that are keys."""
        prefix, unread = f"{place.prefix}self_attn.", ("k", "v")[len(self._kept_parts) :]
        norm = () if self.cache_of is None else (f"{prefix}k_norm.weight",)
        names = (f"{prefix}{part}_proj.{end}" for part in unread for end in ("weight", "bias"))
        return (*names, *norm)

    def weights(self, place: Place) -> AttentionWeights:
        """Names as in Hugging Face's Llama."""
        prefix = f"{place.prefix}self_attn."
        kept = self._kept_parts
        rows = {"q": self.query_size} if not self.output_gate else {}
        rows |= dict.fromkeys(kept, self.kv_size)
        norms = Place(prefix, self.head_dim, place.norm_offset)
        query_norm_size = self.query_size if self.norms_span_heads else self.head_dim
        key_norm_size = self.kv_size if self.norms_span_heads else self.head_dim
        has_norms = self.qk_norm and self.norm_weights
        query_gate = Matrix(
            name=f"{prefix}{'q_gate_proj' if self.gate_apart else 'q_proj'}",
            parts=(f"{prefix}q_proj", f"{prefix}gate_proj") if self.gate_apart else (),
            rows=(self.query_size,) * 2 if self.gate_apart else (2 * self.query_size,),
            inputs=place.hidden_size,
            bias=self.qkv_bias,
            interleaved=() if self.gate_apart else (self.head_dim, self.head_dim),
        )
        return AttentionWeights(
            qkv=Matrix(
                name=f"{prefix}{''.join(rows)}_proj",
                parts=tuple(f"{prefix}{part}_proj" for part in rows),
                rows=tuple(rows.values()),
                inputs=place.hidden_size,
                bias=self.qkv_bias,
            ),
            query_gate=query_gate if self.output_gate else None,
            output=Matrix(
                name=f"{prefix}o_proj",
                rows=(place.hidden_size,),
                inputs=self.query_size,
                bias=self.output_bias,
            ),
            query_norm=norms.norm("q_norm", query_norm_size) if has_norms else None,
            key_norm=norms.norm("k_norm", key_norm_size) if has_norms and kept else None,
            sinks=Vector(f"{prefix}sinks.weight", self.num_heads) if self.sinks else None,
        )
