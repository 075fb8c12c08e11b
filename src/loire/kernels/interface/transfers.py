"""Between the host and where the model computes."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from loire.kernels.interface.batch import FlatBatch, HostBatch


class Transfers(Protocol):
    """Neither waits for what is being computed."""

    def upload(self, host: HostBatch, latest: Tensor) -> tuple[Tensor, FlatBatch]:
        """Token ids (int64 [T]), pending ones taken from latest (int64 [places]), and the batch,
        where latest is. On the host these may be the arrays themselves: they are not to change."""
        ...

    def fetch(self, *results: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """Begins to bring results to the host; the function waits for them, and may be called
        again."""
        ...
