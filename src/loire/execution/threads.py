"""PyTorch's own threads, kept out of the way of a backend that has its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch's operators use count threads meanwhile; None changes nothing.

    OpenMP's workers spin for milliseconds after an operator, on cores that others then lack.
    """
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
