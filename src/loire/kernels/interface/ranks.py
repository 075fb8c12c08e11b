"""Processes that compute one model together: tensor parallelism.

Each has a rank, from 0 on, and a share of the weights. A product of which every rank has some of
the inputs gives each of them a part of the sum; nothing else has to cross within a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where ranks find one another: by each of the ways that backends have."""

    rank: int
    size: int
    memory: int = -1
    """A file, open in each of them, for memory that they share; zeros at first."""
    file: str = ""
    """A path on which nothing lies yet, where no memory is shared."""


class Ranks(Protocol):
    """What crosses between ranks. All of them call the same operations in the same order.

    They raise EngineError when another rank is lost.
    """

    @property
    def rank(self) -> int:
        """Of this process."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def sum(self, parts: Tensor, *, dtype: torch.dtype) -> Tensor:
        """The sum of all ranks' parts, float32 [count, T, N] of each, as dtype [T, N].

        added_up() of all parts, in the order of the ranks; the same bits at each.
        """
        ...

    def gather(self, part: Tensor, borders: Sequence[int]) -> Tensor:
        """At rank 0 all ranks' parts side by side, float32 [T, borders[-1]] of [T, borders[r + 1] -
        borders[r]]; at the others their own."""
        ...

    def lose(self) -> None:
        """End what others wait for, now and later. On any thread."""
        ...


def added_up(parts: Sequence[Tensor]) -> Tensor:
    """Neighbours in groups of the least factor of their count, then the groups likewise.

    A share of the parts that is a whole branch of this tree may be added up elsewhere, and the sum
    has the same bits.
    """
    while len(parts) > 1:
        factor = next(n for n in range(2, len(parts) + 1) if len(parts) % n == 0)
        groups = [parts[i : i + factor] for i in range(0, len(parts), factor)]
        parts = [sum(group[1:], group[0]) for group in groups]
    return parts[0]
