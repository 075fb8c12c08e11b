"""Memory for large results that is used again: what the system gives anew, it clears page by page.

malloc returns blocks of many megabytes to the system as soon as they are free. A prefill of 2,048
tokens through the 1B shape then takes 400,000 page faults, a tenth of its time. Where a virtual
machine takes its memory from its host as it is touched, each megabyte takes 2 to 4 ms.
"""

import contextlib
import math
import mmap
import threading
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGE_BYTES = 1 << 20
"""Smaller results are left to malloc, which keeps them."""
MOST_UNUSED = 8
"""Regions that are kept for later although nothing lies in them."""

_HUGE_PAGE = 2 << 20

Block = NDArray[np.uint8]


class _Region:
    """Memory that the system gave in one piece, cut as results need it."""

    def __init__(self, num_bytes: int) -> None:
        self.memory = huge_pages(num_bytes)
        self._gaps = [(0, self.memory.nbytes)]  # beginnings and ends, in order

    @property
    def free_bytes(self) -> int:
        return sum(end - start for start, end in self._gaps)

    @property
    def is_unused(self) -> bool:
        return self.free_bytes == self.memory.nbytes

    def take(self, num_bytes: int) -> Block | None:
        """The first so many free bytes that lie together: what was touched is used again."""
        for index, (start, end) in enumerate(self._gaps):
            if end - start >= num_bytes:
                self._gaps[index : index + 1] = [(start + num_bytes, end)] * (
                    end - start > num_bytes
                )
                return self.memory[start : start + num_bytes]
        return None

    def give_back(self, block: Block) -> None:
        start = block.ctypes.data - self.memory.ctypes.data
        gaps: list[tuple[int, int]] = []
        for gap in sorted([*self._gaps, (start, start + block.nbytes)]):
            if gaps and gaps[-1][1] == gap[0]:
                gaps[-1] = gaps[-1][0], gap[1]
            else:
                gaps.append(gap)
        self._gaps = gaps


class Workspace:
    """Memory that is lent to tensors, piece by piece, and taken back when they are gone."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self._lock = threading.Lock()
        # Tensors are dropped on any thread, and by a collection even within the methods below.
        self._returned: deque[tuple[_Region, Block]] = deque()

    def reserve(self, num_bytes: int) -> None:
        """Have so many bytes ready, and touched."""
        if num_bytes < LARGE_BYTES:
            return
        region = _Region(num_bytes)
        torch.from_numpy(region.memory).zero_()  # by all threads
        with self._lock:
            self._regions.insert(0, region)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor that nothing is written to yet, like torch.empty."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < LARGE_BYTES:
            return torch.empty(shape, dtype=dtype)
        region, block = self._take(-(-num_bytes // _HUGE_PAGE) * _HUGE_PAGE)
        lent = block[:num_bytes]
        # The tensor's memory holds on to `lent` until the last view of it is gone.
        weakref.finalize(lent, self._returned.append, (region, block)).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    @property
    def free_bytes(self) -> int:
        """Bytes that are kept for later."""
        with self._lock:
            self._take_back()
            return sum(region.free_bytes for region in self._regions)

    def _take(self, num_bytes: int) -> tuple[_Region, Block]:
        """From the first region that has room, or a new one."""
        with self._lock:
            self._take_back()
            for region in self._regions:
                block = region.take(num_bytes)
                if block is not None:
                    return region, block
            region = _Region(num_bytes)
            block = region.take(num_bytes)
            assert block is not None, "a new region has room for what it was made for"
            self._regions.append(region)
            return region, block

    def _take_back(self) -> None:
        while self._returned:
            region, block = self._returned.popleft()
            region.give_back(block)
        unused = [region for region in self._regions if region.is_unused]
        for region in unused[MOST_UNUSED:]:
            self._regions.remove(region)


def huge_pages(num_bytes: int) -> Block:
    """At least so many bytes of new memory: whole huge pages, if the system has such."""
    size = -(-num_bytes // _HUGE_PAGE) * _HUGE_PAGE
    memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # only advice, and kernels without huge pages refuse it
            memory.madvise(mmap.MADV_HUGEPAGE)
    everything = np.frombuffer(memory, dtype=np.uint8)
    start = -everything.ctypes.data % _HUGE_PAGE
    return everything[start : start + size]
