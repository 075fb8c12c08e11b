"""Ranks that share memory, and products over several of them: source/runtime/ranks.h, summed.h."""

import mmap
import os
import weakref
from collections.abc import Sequence
from ctypes import addressof, c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor

from loire.base.errors import ConfigError
from loire.kernels.interface import FlatBatch, Linear, Meeting, Ranks
from loire.kernels.native.calls import GatherCall, JoinCall, SumPartsCall, SumProductsCall
from loire.kernels.native.context import NativeContext, adapter_numbers, address
from loire.kernels.native.dtypes import type_number
from loire.kernels.native.experts import handle_of
from loire.kernels.native.library import array_of
from loire.kernels.ranks import SummedLinear


class NativeRanks:
    """See kernels.interface.Ranks."""

    def __init__(self, context: NativeContext, meeting: Meeting) -> None:
        """Raises ConfigError if the memory cannot be shared."""
        self.rank, self.size = meeting.rank, meeting.size
        library = context.library
        num_bytes = library.shared_bytes(self.size)
        try:
            os.ftruncate(meeting.memory, num_bytes)
            memory = mmap.mmap(meeting.memory, num_bytes)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{num_bytes:,} bytes cannot be shared: {error}") from error
        self._memory = np.frombuffer(memory, dtype=np.uint8)
        call = JoinCall(
            memory=self._memory.ctypes.data, bytes=num_bytes, rank=self.rank, size=self.size
        )
        self._context = context
        handle = library.join(context.handle, call)
        if handle is None:
            raise context.error()
        self.handle: int = handle
        weakref.finalize(self, library.leave, handle).atexit = False

    def sum(self, parts: Tensor, *, dtype: torch.dtype) -> Tensor:
        """[T, N] of [count, T, N]."""
        return _sum(self._context, self.handle, parts, dtype)

    def gather(self, part: Tensor, borders: Sequence[int]) -> Tensor:
        """[T, borders[-1]] at rank 0."""
        part = self._context.results.dense(part)
        out = None
        if self.rank == 0:
            out = self._context.results.new((len(part), borders[-1]), torch.float32)
        columns = array_of(c_int64, borders)
        call = GatherCall(
            ranks=self.handle,
            x=part.data_ptr(),
            out=address(out),
            borders=addressof(columns),
            tokens=len(part),
        )
        self._context.run(self._context.library.gather, call)
        return part if out is None else out

    def lose(self) -> None:
        """End what others wait for."""
        self._context.library.lose(self.handle)


class NativeAlone:
    """See kernels.interface.Ranks: there is but one."""

    rank = 0
    size = 1

    def __init__(self, context: NativeContext) -> None:
        self._context = context

    def sum(self, parts: Tensor, *, dtype: torch.dtype) -> Tensor:
        """[T, N] of [count, T, N]."""
        return _sum(self._context, None, parts, dtype)

    def gather(self, part: Tensor, borders: Sequence[int]) -> Tensor:
        """Itself."""
        return part

    def lose(self) -> None:
        """Nobody waits."""


def _sum(context: NativeContext, ranks: int | None, parts: Tensor, dtype: torch.dtype) -> Tensor:
    parts = context.results.dense(parts)
    count, tokens, size = parts.shape
    wide = dtype is torch.float32
    out = context.results.new((tokens, size), dtype)
    call = SumPartsCall(
        parts=parts.data_ptr(),
        ranks=ranks,
        out=out.data_ptr(),
        count=count,
        tokens=tokens,
        size=size,
        type=type_number(dtype),
        wide=wide,
    )
    context.run(context.library.sum_parts, call)
    return out


class NativeSummedLinear(SummedLinear):
    """All chunks by one call of the library, the sum over the ranks included."""

    def __init__(
        self,
        context: NativeContext,
        products: Sequence[Linear],
        bias: Tensor | None,
        ranks: Ranks,
    ) -> None:
        super().__init__(products, bias, ranks)
        self._context = context
        self._weights = array_of(c_void_p, [handle_of(product) for product in products])
        ends = np.cumsum([product.in_features for product in products])
        self._offsets = array_of(c_int64, [0, *ends[:-1].tolist()])
        self._ranks_handle = ranks.handle if isinstance(ranks, NativeRanks) else None

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        x = self._context.results.dense(x)
        tokens, size = x.shape
        if size != self.in_features or x.dtype is not self.dtype:
            raise ValueError(
                f"x is {tokens} x {size} {x.dtype}, but the weight takes "
                f"{self.in_features} {self.dtype}"
            )
        dtype = torch.float32 if wide else self.dtype
        out = self._context.results.new((tokens, self.out_features), dtype)
        call = SumProductsCall(
            weights=addressof(self._weights),
            offsets=addressof(self._offsets),
            x=x.data_ptr(),
            bias=address(self.bias),
            adapters=adapter_numbers(batch, tokens),
            ranks=self._ranks_handle,
            out=out.data_ptr(),
            tokens=tokens,
            in_features=size,
            out_features=self.out_features,
            chunks=len(self.products),
            type=type_number(self.dtype),
            wide=wide,
        )
        self._context.run(self._context.library.sum_products, call)
        return out
