"""The operations of a forward pass that cost time, as one protocol.

Letters in shapes:
    T  tokens in the step (flat, rows one after another, no padding)
    R  rows in the step (one per sequence)
    M  most blocks in a row's block table
    E  hidden size        I  intermediate size       V  vocabulary size
    H  query heads        K  key/value heads         D  head dimension
    N  blocks in the KV pool                         S  tokens per block

plan_attention() is called once per step, attend() once per layer with its plan (as FlashInfer
does), so that whatever the layers share is worked out once.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loire.base.config import Quantization
from loire.checkpoint.feed_forward import Activation
from loire.checkpoint.formats import WeightFormat
from loire.kernels.block_formats import StoredTensor


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """The rows of a step, flattened. Row r owns tokens query_starts[r] up to query_starts[r + 1].

    The token at index i of row r stands at position context_lens[r] - query_lens[r] + i and sees
    all keys up to itself; the keys of this step's own tokens are in the cache before attend().
    """

    positions: Tensor
    """int64 [T]: position of each token in its sequence."""
    slots: Tensor
    """int64 [T]: where its key and value go: block * S + offset."""
    block_tables: Tensor
    """int32 [R, M]: block ids; entries past a row's context are 0 and must not be read."""
    query_starts: Tensor
    """int32 [R + 1]."""
    context_lens: Tensor
    """int32 [R]: keys that the row's last token sees, itself included."""
    host_query_lens: tuple[int, ...]
    """Tokens per row, on the host."""
    host_context_lens: tuple[int, ...]
    """context_lens, on the host."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """KV of one layer, in blocks. Memory that no sequence wrote holds anything, NaN included.

    A block has no gaps, but blocks may lie apart (stride(0)), as where a page of memory holds those
    of several layers: keys and values then equally far, key and value scales too. Layers may differ
    in S.
    """

    keys: Tensor
    """[N, K, S, D] in the model's dtype, or codes (int8) as loire.kernels.quantization defines
    them; rotated."""
    values: Tensor
    """[N, K, S, D] of the same dtype."""
    key_scales: Tensor | None = None
    """float32 [N, K, S]: of codes."""
    value_scales: Tensor | None = None
    """float32 [N, K, S]: of codes."""


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """cos and sin by position, float32 [max_model_len, rotary_dim / 2], attention factor included.

    Dimension i is paired with i + rotary_dim / 2 (the layout of Hugging Face checkpoints).
    """

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm over each head of queries and keys, before the rotation (Qwen3, Gemma 3)."""

    query_weight: Tensor
    """float32 [D], offset included."""
    key_weight: Tensor
    """float32 [D], offset included."""
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a layer's attention is, apart from the batch."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    """A token sees this many latest positions, itself included; None is all."""
    softcap: float | None = None
    stores: bool = True
    """False: keys and values are another layer's, and rotate_and_store() gets queries alone."""


@dataclass(frozen=True, slots=True)
class SamplingKnobs:
    """What each row of logits is drawn under. All [L], contiguous, on the logits' device.

    A token's weight is exp(logit / temperature). Kept are those of at least min_p times the
    largest; of these the top_k largest (the first of equals); of these the fewest of the largest
    whose weights reach top_p of the sum. Of what is kept, in the order of the vocabulary, the first
    token is drawn at which the sum of weights passes draw times the whole.
    """

    temperature: Tensor
    """float32, above 0."""
    min_p: Tensor
    """float32; 0 keeps all."""
    top_k: Tensor
    """int64; the vocabulary's size or more keeps all."""
    top_p: Tensor
    """float32; 1 keeps all."""
    draw: Tensor
    """float64, in [0, 1)."""


class Linear(Protocol):
    """A weight, prepared once at load for the way this backend multiplies."""

    in_features: int
    out_features: int

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of it."""
        ...

    def __call__(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """[T, in_features] to [T, out_features], accumulated in float32.

        In x's dtype, or with wide in float32 (not rounded on the way where a backend can).
        """
        ...


Weight = Tensor | StoredTensor
"""Rows of numbers, or of blocks as a file holds them."""


def parts_of(weight: Weight | Sequence[Weight]) -> list[Weight]:
    """A weight that may come in parts, as a list of them."""
    return [weight] if isinstance(weight, Tensor | StoredTensor) else list(weight)


class AttentionPlan(Protocol):
    """Whatever a backend works out once per step for all layers."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The tokens of a step whose last hidden states are asked for, fewer than all.

    The others are computed up to the last layer's keys and values: nothing after those is read.
    """

    tokens: Tensor
    """int64 [W]: indices of tokens in the flat batch, ascending."""
    plan: AttentionPlan | None
    """For attend() of these alone; None where there are none."""


ComputeStep = Callable[[Tensor, FlatBatch, AttentionPlan, Wanted | None], Tensor]
"""From token ids (int64 [T]), the batch and its plan to the last hidden states [T, E], or [W, E] of
the wanted."""


class Backend(Protocol):
    """One way of computing the operations. All return new tensors unless they say otherwise."""

    name: str
    batch_invariant_dtypes: frozenset[torch.dtype]
    """Dtypes for which a row's result is the same bits in any batch, chunking and block layout."""
    copies_weights: bool
    """Whether linear() keeps nothing of the tensors it is given, on whatever memory they lie."""
    torch_threads: int | None
    """Threads for PyTorch's own operators during a step; None leaves them as they are."""

    def keeps(self, formats: Collection[WeightFormat], dtype: torch.dtype) -> bool:
        """Whether linear() does well with a weight of parts in these formats, some of them blocks,
        for inputs of dtype. Where not, numbers of dtype are better."""
        ...

    def linear(
        self,
        weight: Weight | Sequence[Weight],
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        quantization: Quantization | None = None,
        gate: Activation | None = None,
    ) -> Linear:
        """Prepare weight [out, in] (and bias [out]); the caller drops its own reference.

        weight: whole, or in parts, one below the other; each may be stored in another way.
        dtype: of the inputs; where it is not given, that of the weight's numbers.
        quantization: rounds numbers (blocks stay as they are) and activations as
        loire.kernels.quantization defines it.
        gate: makes it a gated product (Shazeer 2020, "GLU Variants Improve Transformer") of
        out / 2 outputs: gate(first half) * second half, both rounded to x's dtype before. Not to be
        called with wide.

        With blocks the inputs are rounded as loire.kernels.quantization says, unless they are
        float32: those are taken as they are.
        """
        ...

    def embed(
        self, token_ids: Tensor, table: Tensor, scale: float, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(rows), rows), both [T, E]: the table's rows (table [V, E]) of token_ids (int64
        [T]) times scale, in float32, and the first layer's input in the table's dtype."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, E] normalised in float32, times weight (float32 [E]), in x's dtype.

        Zhang & Sennrich 2019, "Root mean square layer normalization".
        """
        ...

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(x + residual), x + residual). May overwrite both arguments.

        The residual stream, float32 [T, E], is not rounded from layer to layer; the norm is in
        x's dtype.
        """
        ...

    def largest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row of logits, float32 [L, V]: the index of its largest entry, the first of
        equals (int64 [L], anything for a row with NaN), and whether all are finite (bool [L])."""
        ...

    def draw(self, logits: Tensor, knobs: SamplingKnobs) -> Tensor:
        """A token (int64 [L]) from each row of logits, float32 [L, V], finite or minus infinity."""
        ...

    def rotate_and_store(
        self,
        qkv: Tensor,
        shape: AttentionShape,
        norms: HeadNorms | None,
        rotary: RotaryTable,
        batch: FlatBatch,
        cache: LayerCache,
    ) -> Tensor:
        """Split qkv [T, (H + 2 * K) * D]; norm and rotate queries and keys; store keys, values.

        Where shape.stores is false, qkv is [T, H * D] and nothing is stored.

        Returns the queries [T, H, D]. Writes cache at batch.slots. May overwrite qkv.
        """
        ...

    def plan_attention(self, batch: FlatBatch, block_size: int) -> AttentionPlan:
        """Once per step: what attend() needs of the batch in every layer."""
        ...

    def capture(self, compute: ComputeStep) -> ComputeStep:
        """The same function, perhaps with less effort when it is called again.

        compute must do nothing but call this backend's operations, always the same ones.
        """
        ...

    def attend(
        self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, shape: AttentionShape
    ) -> Tensor:
        """Causal attention of queries [T, H, D] over the paged cache; [T, H * D].

        Softmax in float32. A row reads nothing but its own context: no stale value, be it NaN,
        can reach it.
        """
        ...
