"""Mixers with a state instead of a cache of tokens: gated delta net, Mamba-2, short convolution.

See mixers.py for what a description is.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from loire.checkpoint.mixers import CacheNeed, StateArrays
from loire.checkpoint.weights import Filters, Matrix, Place, Vector


class _KeepsState(ABC):
    """What mixers with a state have in common."""

    __slots__ = ()

    @property
    def cache_of(self) -> int | None:
        """The state is the layer's own."""
        return None

    @abstractmethod
    def operations(self, context: float) -> float:
        """Of a token, beside the products; the same at any context."""

    def prompt_operations(self, prompt: int) -> float:
        """As many for each token."""
        return prompt * self.operations(0)


def _convolution_and_matrices(
    filter_width: int, channels: int, num_heads: int, matrix: tuple[int, int]
) -> CacheNeed:
    """What a convolution saw last of so many channels, and a matrix for each head."""
    return CacheNeed(
        kind="state",
        state=(StateArrays(1, (filter_width - 1, channels)), StateArrays(num_heads, matrix)),
    )


@dataclass(frozen=True, slots=True)
class GatedDeltaNetWeights:
    """Weights of a gated delta net."""

    qkv_gate: Matrix
    """Queries, keys and values, as they go into the convolution; then the output's gate."""
    beta_alpha: Matrix
    """Of each value head: how much it learns, how much it forgets."""
    filters: Filters
    decay: Vector
    decay_bias: Vector
    norm: Vector
    output: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNetDescription(_KeepsState):
    """The gated delta rule (Yang et al. 2024, "Gated Delta Networks") behind a short convolution.

    A value head has a matrix S [key_dim, value_dim], which a token with key k and value v changes:

        S = decay * S;  S = S + k (beta * (v - k S));  out = q S

    with q and k of length 1 (q divided by sqrt(key_dim), too), beta = sigmoid(b) and
    decay = exp(-rate * softplus(a + bias)). The result is normed, and times silu(gate).

    Attributes:
        num_key_heads: of queries and keys alike.
        num_value_heads: a multiple of it.
        filter_width: tokens that the convolution sees, the newest included.
        heads_in_turn: value head h belongs to key head h modulo num_key_heads (GGUF files of
            Qwen3.5), else to h // (value heads per key head).
        decay_is_log: the file has log(rate), else -rate (GGUF).
        is_fused: queries, keys, values and gate are one tensor in the file, key head by key head,
            and so are b and a (Qwen3-Next).
        gates_fused: b and a alone are (GGUF files of Qwen3-Next).
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    filter_width: int
    heads_in_turn: bool = False
    decay_is_log: bool = True
    is_fused: bool = False
    gates_fused: bool = False

    @property
    def key_size(self) -> int:
        """Elements of all keys of a token."""
        return self.num_key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Elements of all values of a token."""
        return self.num_value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Elements of a token that go through the convolution: queries, keys, values."""
        return 2 * self.key_size + self.value_size

    @property
    def cache(self) -> CacheNeed:
        """What the convolution saw last, and a matrix for each value head."""
        matrix = (self.key_dim, self.value_dim)
        return _convolution_and_matrices(
            self.filter_width, self.channels, self.num_value_heads, matrix
        )

    @property
    def activation_elements(self) -> int:
        """What goes into the convolution and comes out of it, the gate, the result."""
        return 2 * self.channels + 2 * self.value_size

    def operations(self, context: float) -> float:
        """The convolution; decay, read, write and query of each matrix."""
        matrices = self.num_value_heads * self.key_dim * self.value_dim
        return 2.0 * self.channels * self.filter_width + 7.0 * matrices

    @property
    def remembered_outputs(self) -> int:
        """All but the last product are needed of every token."""
        return self.channels + self.value_size + 2 * self.num_value_heads

    def weights(self, place: Place) -> GatedDeltaNetWeights:
        """Names as in Hugging Face's Qwen3.5, or Qwen3-Next where they are fused."""
        prefix, inputs = f"{place.prefix}linear_attn.", place.hidden_size
        per_key = self.num_value_heads // self.num_key_heads
        gates_fused = self.is_fused or self.gates_fused
        keys, values = self.key_dim, per_key * self.value_dim
        return GatedDeltaNetWeights(
            qkv_gate=Matrix(
                name=f"{prefix}in_proj_qkvz",
                parts=() if self.is_fused else (f"{prefix}in_proj_qkv", f"{prefix}in_proj_z"),
                rows=(self.channels, self.value_size),
                inputs=inputs,
                interleaved=(keys, keys, values, values) if self.is_fused else (),
            ),
            beta_alpha=Matrix(
                name=f"{prefix}in_proj_ba",
                parts=() if gates_fused else (f"{prefix}in_proj_b", f"{prefix}in_proj_a"),
                rows=(self.num_value_heads, self.num_value_heads),
                inputs=inputs,
                interleaved=(per_key, per_key) if gates_fused else (),
            ),
            filters=Filters(f"{prefix}conv1d.weight", self.channels, self.filter_width),
            decay=Vector(f"{prefix}A_log", self.num_value_heads),
            decay_bias=Vector(f"{prefix}dt.bias", self.num_value_heads),
            norm=Vector(f"{prefix}norm.weight", self.value_dim),
            output=Matrix(
                name=f"{prefix}out_proj", rows=(place.hidden_size,), inputs=self.value_size
            ),
        )


@dataclass(frozen=True, slots=True)
class Mamba2Weights:
    """Weights of Mamba-2."""

    input: Matrix
    """Gates; x, B and C, as they go into the convolution; steps."""
    filters: Filters
    filter_bias: Vector | None
    decay: Vector
    step_bias: Vector
    skip: Vector
    norm: Vector
    output: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Description(_KeepsState):
    """State space duality (Dao and Gu 2024, "Transformers are SSMs") behind a short convolution.

    A head has a matrix S [state_dim, head_dim], which a token with x, B, C and a step changes:

        S = exp(-rate * step) * S + B (step * x);  out = C S + skip * x

    with step = softplus(given + bias), within limits. B and C are those of the head's group. The
    result is multiplied by silu(gate), then normalised, each group by itself.

    Attributes:
        filter_width: tokens that the convolution sees, the newest included.
        filter_bias: whether the convolution has one.
        bias: whether both products have one.
        least_step, most_step: the limits.
        decay_is_log: the file has log(rate), else -rate (GGUF).
    """

    num_heads: int
    num_groups: int
    """The heads are a multiple of them."""
    head_dim: int
    state_dim: int
    filter_width: int
    filter_bias: bool = True
    bias: bool = False
    least_step: float = 0.0
    most_step: float = math.inf
    decay_is_log: bool = True

    @property
    def size(self) -> int:
        """Elements of x of a token, as many as its gate and the result have."""
        return self.num_heads * self.head_dim

    @property
    def channels(self) -> int:
        """Elements of a token that go through the convolution: x, B and C."""
        return self.size + 2 * self.num_groups * self.state_dim

    @property
    def cache(self) -> CacheNeed:
        """What the convolution saw last, and a matrix for each head."""
        matrix = (self.state_dim, self.head_dim)
        return _convolution_and_matrices(self.filter_width, self.channels, self.num_heads, matrix)

    @property
    def activation_elements(self) -> int:
        """What goes into the convolution and comes out of it, the gate, the result twice."""
        return 2 * self.channels + 3 * self.size

    def operations(self, context: float) -> float:
        """The convolution; decay, writing and reading of each matrix."""
        matrices = self.num_heads * self.head_dim * self.state_dim
        return 2.0 * self.channels * self.filter_width + 5.0 * matrices

    @property
    def remembered_outputs(self) -> int:
        """All but the last product are needed of every token."""
        return self.size + self.channels + self.num_heads

    def weights(self, place: Place) -> Mamba2Weights:
        """Names as in Hugging Face's Granite 4."""
        prefix, heads = f"{place.prefix}mamba.", self.num_heads
        return Mamba2Weights(
            input=Matrix(
                name=f"{prefix}in_proj",
                rows=(self.size + self.channels + heads,),
                inputs=place.hidden_size,
                bias=self.bias,
            ),
            filters=Filters(f"{prefix}conv1d.weight", self.channels, self.filter_width),
            filter_bias=Vector(f"{prefix}conv1d.bias", self.channels) if self.filter_bias else None,
            decay=Vector(f"{prefix}A_log", heads),
            step_bias=Vector(f"{prefix}dt.bias", heads),
            skip=Vector(f"{prefix}D", heads),
            norm=Vector(f"{prefix}norm.weight", self.size),
            output=Matrix(
                name=f"{prefix}out_proj",
                rows=(place.hidden_size,),
                inputs=self.size,
                bias=self.bias,
            ),
        )


@dataclass(frozen=True, slots=True)
class ShortConvolutionWeights:
    """Weights of a short convolution."""

    input: Matrix
    """Two gates, and what is convolved."""
    filters: Filters
    filter_bias: Vector | None
    output: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolutionDescription(_KeepsState):
    """output(second * convolution(first * x)) (LFM2)."""

    hidden_size: int
    filter_width: int
    bias: bool = False

    @property
    def cache(self) -> CacheNeed:
        """What the convolution saw last."""
        shape = (self.filter_width - 1, self.hidden_size)
        return CacheNeed(kind="state", state=(StateArrays(1, shape),))

    @property
    def activation_elements(self) -> int:
        """Both gates, what is convolved, the result."""
        return 4 * self.hidden_size

    def operations(self, context: float) -> float:
        """The convolution and the gates."""
        return 2.0 * self.hidden_size * (self.filter_width + 1)

    @property
    def remembered_outputs(self) -> int:
        """All but the last product are needed of every token."""
        return 3 * self.hidden_size

    def weights(self, place: Place) -> ShortConvolutionWeights:
        """Names as in Hugging Face's LFM2."""
        prefix, size = f"{place.prefix}conv.", self.hidden_size
        return ShortConvolutionWeights(
            input=Matrix(name=f"{prefix}in_proj", rows=(3 * size,), inputs=size, bias=self.bias),
            filters=Filters(f"{prefix}conv.weight", size, self.filter_width),
            filter_bias=Vector(f"{prefix}conv.bias", size) if self.bias else None,
            output=Matrix(name=f"{prefix}out_proj", rows=(size,), inputs=size, bias=self.bias),
        )
