"""Ranks by torch's own gloo: for backends that share no memory, and as the definition of others."""

import os
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from loire.base.errors import EngineError
from loire.kernels.interface import FlatBatch, Linear, LowRank, Meeting, PackedAdapter, Ranks
from loire.kernels.interface.ranks import added_up

PATIENCE = timedelta(minutes=10)
"""With a rank that is there, but makes no step."""


class Alone:
    """See kernels.interface.Ranks: there is but one."""

    rank = 0
    size = 1

    def sum(self, parts: Tensor, *, dtype: torch.dtype) -> Tensor:
        """[T, N] of [count, T, N]."""
        return added_up(parts.unbind()).to(dtype)

    def gather(self, part: Tensor, borders: Sequence[int]) -> Tensor:
        """Itself."""
        return part

    def lose(self) -> None:
        """Nobody waits."""


class GlooRanks:
    """See kernels.interface.Ranks. They talk over the loopback device."""

    def __init__(self, meeting: Meeting) -> None:
        import torch.distributed

        dist: Any = torch.distributed
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self.rank, self.size = meeting.rank, meeting.size
        store = dist.FileStore(meeting.file, self.size)
        self._group = dist.ProcessGroupGloo(store, self.rank, self.size, PATIENCE)

    def sum(self, parts: Tensor, *, dtype: torch.dtype) -> Tensor:
        """[T, N] of [count, T, N]."""
        own = added_up(parts.unbind()).contiguous()
        return added_up(self._everybodys(own)).to(dtype)

    def gather(self, part: Tensor, borders: Sequence[int]) -> Tensor:
        """[T, borders[-1]] at rank 0."""
        widths = [end - first for first, end in pairwise(borders)]
        padded = part.new_zeros((len(part), max(widths)))
        padded[:, : part.shape[1]] = part
        parts = self._everybodys(padded)
        if self.rank:
            return part
        return torch.cat([x[:, :width] for x, width in zip(parts, widths, strict=True)], dim=1)

    def lose(self) -> None:
        """A rank that ends closes its connections, which ends what the others wait for."""

    def _everybodys(self, own: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(own) for _ in range(self.size)]
        try:
            self._group.allgather([parts], [own]).wait()
        except RuntimeError as error:
            raise EngineError(f"another rank is lost: {error}") from error
        return parts


def join(meeting: Meeting) -> Ranks:
    """Those of a meeting."""
    return Alone() if meeting.size == 1 else GlooRanks(meeting)


class SummedLinear:
    """A product whose inputs lie in chunks: each is multiplied by a weight of its own, and their
    sum, that of the other ranks' chunks included, is taken in a tree (kernels.interface.ranks)."""

    def __init__(self, products: Sequence[Linear], bias: Tensor | None, ranks: Ranks) -> None:
        """products: of consecutive inputs, without bias and gate. bias: [out]."""
        self.products = tuple(products)
        self.in_features = sum(product.in_features for product in products)
        self.out_features = products[0].out_features
        self.dtype = products[0].dtype
        self.bias = None if bias is None else bias.float().contiguous()
        self.ranks = ranks

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of them."""
        return sum(product.weight_bytes for product in self.products)

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        chunks = x.split([product.in_features for product in self.products], dim=1)
        parts = [
            product(chunk.contiguous(), batch, wide=True)
            for product, chunk in zip(self.products, chunks, strict=True)
        ]
        total = self.ranks.sum(torch.stack(parts), dtype=torch.float32)
        if self.bias is not None:
            total = total + self.bias
        return total if wide else total.to(self.dtype)

    def pack_adapter(self, parts: Sequence[LowRank]) -> "SummedAdapter":
        """See Linear.pack_adapter(): each chunk adds what its inputs make of it."""
        first, packed = 0, []
        for product in self.products:
            end = first + product.in_features
            own = [LowRank(part.down[:, first:end], part.up, part.first) for part in parts]
            packed.append(product.pack_adapter(own))
            first = end
        return SummedAdapter(tuple(packed))

    def adapt(self, number: int, adapter: PackedAdapter | None) -> None:
        """See Linear.adapt()."""
        assert adapter is None or isinstance(adapter, SummedAdapter), "another weight packed this"
        parts: Sequence[Any] = [None] * len(self.products) if adapter is None else adapter.parts
        for product, part in zip(self.products, parts, strict=True):
            product.adapt(number, part)


class SummedAdapter:
    """See PackedAdapter: of each chunk."""

    def __init__(self, parts: tuple[PackedAdapter, ...]) -> None:
        self.parts = parts

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in memory."""
        return sum(part.num_bytes for part in self.parts)


class GatheredLinear:
    """A product of which each rank has some of the outputs; rank 0 gets all. Its results are
    wide."""

    def __init__(self, part: Linear, borders: Sequence[int], ranks: Ranks) -> None:
        """borders: where each rank's outputs begin, and the last one's end."""
        self.in_features = part.in_features
        self.out_features = borders[-1]
        self.dtype = part.dtype
        self.part = part
        self._borders = tuple(borders)
        self._ranks = ranks

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of this rank's."""
        return self.part.weight_bytes

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        """[T, in] to float32 [T, out] at rank 0, to this rank's outputs elsewhere."""
        if not wide:
            raise ValueError("gathered results are wide")
        return self._ranks.gather(self.part(x, batch, wide=True), self._borders)

    def pack_adapter(self, parts: Sequence[LowRank]) -> PackedAdapter:
        """See Linear.pack_adapter(), of this rank's outputs."""
        return self.part.pack_adapter(parts)

    def adapt(self, number: int, adapter: PackedAdapter | None) -> None:
        """See Linear.adapt()."""
        self.part.adapt(number, adapter)
