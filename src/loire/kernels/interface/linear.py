"""Products with weights, and what adapters add to them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loire.base.config import Quantization
from loire.checkpoint.feed_forward import Activation, Routing
from loire.checkpoint.formats import WeightFormat
from loire.kernels.block_formats import StoredTensor
from loire.kernels.interface.batch import FlatBatch
from loire.kernels.interface.ranks import Ranks


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to some outputs of a product (Hu et al. 2021, "LoRA"): up (down x)."""

    down: Tensor
    """[rank, in_features]."""
    up: Tensor
    """[outputs, rank], times the adapter's scale."""
    first: int = 0
    """The output that the first row of `up` is added to."""


class PackedAdapter(Protocol):
    """What an adapter adds to one weight, as that weight's products take it."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in memory."""
        ...


class Linear(Protocol):
    """A weight, prepared once at load for the way its device multiplies."""

    in_features: int
    out_features: int

    @property
    def dtype(self) -> torch.dtype:
        """Of its inputs, and of its results unless they are wide."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of it."""
        ...

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        """[T, in_features] to [T, out_features], accumulated in float32.

        In x's dtype, or with wide in float32 (not rounded on the way where a device can).

        batch: whose tokens x has. Where batch.adapters gives a token an adapter, and adapt() has
        given this weight something of it, that is added before the result is rounded, in a gated
        product before the activation. A token without has the bits it has with no adapter at all.
        """
        ...

    def pack_adapter(self, parts: Sequence[LowRank]) -> PackedAdapter:
        """The sum of these, in the dtype of the inputs, for adapt() of this weight; a gated product
        counts outputs before the gate: those of its first half, then those of its second. On any
        thread, also while steps compute.

        Raises ValueError if a shape or dtype does not fit.
        """
        ...

    def adapt(self, number: int, adapter: PackedAdapter | None) -> None:
        """From now on tokens of adapter `number` get what was packed; None: nothing. Takes next to
        no time, but not while a step computes.

        Raises ValueError unless 0 <= number < MOST_ADAPTERS.
        """
        ...


class Expert(Protocol):
    """An MLP among others: down(gate_up(x))."""

    @property
    def gate_up(self) -> Linear:
        """With its activation: [T, E] to [T, I]."""
        ...

    @property
    def down(self) -> Linear:
        """[T, I] to [T, E]."""
        ...


@dataclass(frozen=True, slots=True)
class ExpertChunks:
    """Experts that several ranks have, in chunks."""

    borders: tuple[int, ...]
    """Where each of this rank's chunks begins, and the last one ends."""
    ranks: Ranks


class Experts(Protocol):
    """MLPs, of which each token goes through some."""

    @property
    def is_replayable(self) -> bool:
        """Whether a step that calls it may be recorded (see GraphCapture)."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of all experts."""
        ...

    def __call__(
        self,
        x: Tensor,
        logits: Tensor,
        beside: Tensor | None = None,
        batch: FlatBatch | None = None,
    ) -> Tensor:
        """[T, E]: for each token of x [T, E] the weighted sum of what its experts make of it, in
        the order of the experts, and then beside, in float32, then rounded to x's dtype. Each
        expert is computed once, for all tokens that chose it.

        logits: float32 [T, experts], of the router. beside: [T, E] in x's dtype, such as what an
        expert that all tokens share makes of them. batch: whose tokens x has, for their adapters,
        as with Linear.
        """
        ...


class Heads(Protocol):
    """Products of heads, each with a weight of its own."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all of them."""
        ...

    def __call__(
        self, x: Tensor, out: Tensor | None = None, batch: FlatBatch | None = None
    ) -> Tensor:
        """Of x [T, H, in]; [T, H, out], in out if it is given. All in the dtype of the products'
        inputs, and without gaps in the last dimension; x and out may not overlap. batch: whose
        tokens x has, for their adapters, as with Linear."""
        ...


Weight = Tensor | StoredTensor
"""Rows of numbers, or of blocks as a file holds them."""


Table = Tensor | Linear
"""What rows are looked up in: numbers, or what pack() made of one tensor in blocks, without bias
and gate."""


def parts_of(weight: Weight | Sequence[Weight]) -> list[Weight]:
    """A weight that may come in parts, as a list of them."""
    return [weight] if isinstance(weight, Tensor | StoredTensor) else list(weight)


class LinearKernels(Protocol):
    """Makes weights ready for products."""

    copies_weights: bool
    """Whether pack() keeps nothing of the tensors it is given, on whatever memory they lie."""

    def keeps(self, formats: Collection[WeightFormat], dtype: torch.dtype) -> bool:
        """Whether pack() does well with a weight of parts in these formats, some of them blocks,
        for inputs of dtype. Where not, numbers of dtype are better. (loire.checkpoint.kept_blocks
        asks only for those of gated weights whose halves are alike.)"""
        ...

    def pack(
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
        out / 2 outputs: gate(first half) * second half, both rounded to x's dtype before; or, with
        an activation that is no gate, of out outputs: activation(result), rounded before. Not to
        be called with wide.

        With blocks the inputs are rounded as loire.kernels.quantization says, unless they are
        float32 or the blocks hold FP8: then they are taken as they are. Halves of a gated weight
        lie alike.
        """
        ...

    def experts(
        self,
        experts: Sequence[Expert | None],
        routing: Routing,
        bias: Tensor | None = None,
        scales: Tensor | None = None,
        chunks: ExpertChunks | None = None,
    ) -> Experts:
        """A mixture of experts whose products pack() made, all for inputs of one dtype.

        bias: float32 [experts], added to scores where they are compared alone. scales: float32
        [experts]; each expert's weight is multiplied by its own.

        chunks: what the experts of a chunk make of a token is added up in their order, and the
        chunks, those of other ranks included, in a tree, before what is beside comes. Experts
        outside this rank's chunks are None.
        """
        ...

    def heads(self, products: Sequence[Linear]) -> Heads:
        """Products that pack() made without bias and gate, each of one tensor and all of one shape,
        of one head each."""
        ...

    def summed(self, products: Sequence[Linear], bias: Tensor | None, ranks: Ranks) -> Linear:
        """A product whose inputs lie in chunks, one after another, some of them at other ranks.

        products: of this rank's chunks; pack() made each, without bias and gate. Their results in
        float32 and those of the other ranks are added up in a tree (loire.kernels.interface.ranks),
        then comes bias [out], then rounding: the same bits for any share of the chunks.
        """
        ...

    def dequantize(self, data: memoryview, fmt: WeightFormat, dtype: torch.dtype) -> Tensor:
        """The numbers of a tensor in blocks of a GGUF format, as dtype [elements] on the host.

        As the gguf library computes them. Raises ValueError if data are not whole blocks of it.
        """
        ...
