"""Mixers with a state: each sequence has one, in the pages of its slot, and every token changes it.

In a state's cache group FlatBatch.block_tables ([R, pages of a slot]) holds the pages of each row's
slot, and slots are of no meaning. A row goes on from the state that is there and leaves it as its
last token left it; a new sequence's is zero.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from loire.kernels.interface.attention import AttentionPlan
from loire.kernels.interface.batch import FlatBatch


@dataclass(frozen=True, slots=True)
class StatePlaces:
    """Where arrays of float32, all of one shape, lie in a slot."""

    shape: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    """Of each array: which of the slot's pages it lies in, and bytes from there."""


@dataclass(frozen=True, slots=True)
class StateCache:
    """The states of one layer, as its mixer's description lists their arrays."""

    pages: Tensor
    """uint8 [N, page bytes]: the pool."""
    arrays: tuple[StatePlaces, ...]
    group: int = 0
    """Its cache group: which of a step's batches goes with it."""


@dataclass(frozen=True, slots=True)
class DeltaNetShape:
    """What a layer's gated delta net is, apart from the batch."""

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    heads_in_turn: bool
    """Value head h belongs to key head h modulo num_key_heads, else to h // (Hv / Hk)."""
    eps: float
    """Of the norm of its results."""

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
        """C: queries, keys and values of a token."""
        return 2 * self.key_size + self.value_size


@dataclass(frozen=True, slots=True)
class DeltaNetWeights:
    """float32, contiguous."""

    filters: Tensor
    """[width, C]: the oldest token's weights first."""
    rate: Tensor
    """[Hv], positive."""
    decay_bias: Tensor
    """[Hv]."""
    norm: Tensor
    """[value_dim]."""


@dataclass(frozen=True, slots=True)
class Mamba2Shape:
    """What a layer's Mamba-2 is, apart from the batch."""

    num_heads: int
    num_groups: int
    """Of B and C; heads in order belong to a group. The norm is over each group by itself."""
    head_dim: int
    state_dim: int
    least_step: float
    most_step: float
    eps: float
    """Of the norm."""

    @property
    def size(self) -> int:
        """Elements of x of a token."""
        return self.num_heads * self.head_dim

    @property
    def channels(self) -> int:
        """C: x, B and C of a token."""
        return self.size + 2 * self.num_groups * self.state_dim


@dataclass(frozen=True, slots=True)
class Mamba2Weights:
    """float32, contiguous."""

    filters: Tensor
    """[width, C]: the oldest token's weights first."""
    filter_bias: Tensor | None
    """[C]."""
    rate: Tensor
    """[H], positive."""
    step_bias: Tensor
    """[H]."""
    skip: Tensor
    """[H]."""
    norm: Tensor
    """[size]."""


class RecurrentKernels(Protocol):
    """Each operation is a whole mixer but for its first and last product.

    A token's result is rounded once, to the inputs' dtype; all else is float32.
    """

    def plan(self, batch: FlatBatch) -> AttentionPlan | None:
        """Once per step and cache group of states: what stands in the place of attention's plan."""
        ...

    @property
    def is_replayable(self) -> bool:
        """Whether a backend's capture knows these operations."""
        ...

    def gated_delta_net(
        self,
        qkv_gate: Tensor,
        beta_alpha: Tensor,
        weights: DeltaNetWeights,
        shape: DeltaNetShape,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: StateCache,
    ) -> Tensor:
        """[T, value_size] of qkv_gate [T, C + value_size] and beta_alpha [T, 2 * Hv].

        1. qkv is convolved along the sequence, by channel, and goes through silu.
        2. q and k get length 1 (x / sqrt(sum(x^2) + 1e-6)), q is divided by sqrt(key_dim).
        3. For each token and value head, with its key head's q and k:
           S = exp(-rate * softplus(alpha + decay_bias)) * S
           S = S + k (sigmoid(beta) * (v - k S)); out = q S       (S: [key_dim, value_dim])
        4. rms_norm(out) * norm * silu(gate).

        cache: the last width - 1 inputs of the convolution, [width - 1, C], the oldest first; then
        S of each value head. Yang et al. 2024, "Gated Delta Networks".
        """
        ...

    def mamba2(
        self,
        projected: Tensor,
        weights: Mamba2Weights,
        shape: Mamba2Shape,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: StateCache,
    ) -> Tensor:
        """[T, size] of projected [T, size + C + H], which is (gate, (x, B, C), step).

        1. x, B and C are convolved along the sequence, by channel, and go through silu.
        2. step = softplus(step + step_bias), at least least_step and at most most_step.
        3. For each token and head, with its group's B and C:
           S = exp(-rate * step) * S + B (step * x)                (S: [state_dim, head_dim])
           out = C S + skip * x
        4. rms_norm(out * silu(gate)) * norm, each group's elements normalised by themselves.

        cache: the last width - 1 inputs of the convolution, [width - 1, C], the oldest first; then
        S of each head. Dao and Gu 2024, "Transformers are SSMs".
        """
        ...

    def short_convolution(
        self,
        gated: Tensor,
        filters: Tensor,
        bias: Tensor | None,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: StateCache,
    ) -> Tensor:
        """[T, E] of gated [T, 3 * E], which is (first, second, x): second * convolved(first * x).

        filters: float32 [width, E], the oldest token's first; bias: float32 [E]. cache: the last
        width - 1 inputs of the convolution, [width - 1, E], the oldest first.
        """
        ...
