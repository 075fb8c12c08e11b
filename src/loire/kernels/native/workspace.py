"""Memory for large results that is used again: what the system gives anew, it clears page by page.

malloc returns blocks of many megabytes to the system as soon as they are free. A prefill of 2,048
tokens through the 1B shape then takes 400,000 page faults, a tenth of its time.
"""

import contextlib
import math
import mmap
import threading
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGE_BYTES = 1 << 20
"""Smaller results are left to malloc, which keeps them."""
MOST_FREE = 8
"""Blocks that are kept for later; a layer holds fewer results than that at a time."""

_HUGE_PAGE = 2 << 20

Block = NDArray[np.uint8]


class Workspace:
    """Blocks of memory, each lent to one tensor at a time and taken back when that is gone."""

    def __init__(self) -> None:
        self._free: list[Block] = []  # the largest first
        # Tensors are dropped on any thread, and by a collection even within the methods below: then
        # the inner change is lost and its block freed, but none is lent twice.
        self._lock = threading.RLock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor that nothing is written to yet, like torch.empty."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < LARGE_BYTES:
            return torch.empty(shape, dtype=dtype)
        block = self._take(num_bytes)
        lent = block[:num_bytes]
        # The tensor's memory holds on to `lent` until the last view of it is gone.
        weakref.finalize(lent, self._give_back, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    @property
    def free_bytes(self) -> int:
        """Bytes that are kept for later."""
        return sum(block.nbytes for block in self._free)

    def _take(self, num_bytes: int) -> Block:
        """The smallest free block that is large enough, or a new one."""
        with self._lock:
            free = self._free
            fitting = [index for index, block in enumerate(free) if block.nbytes >= num_bytes]
            if not fitting:
                return huge_pages(num_bytes)
            best = fitting[-1]  # the largest come first
            self._free = free[:best] + free[best + 1 :]
            return free[best]

    def _give_back(self, block: Block) -> None:
        with self._lock:
            largest_first = sorted([*self._free, block], key=lambda block: -block.nbytes)
            self._free = largest_first[:MOST_FREE]


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
