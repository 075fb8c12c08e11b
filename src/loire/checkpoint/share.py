"""How things are divided among ranks, and how sums over them are cut into chunks.

A sum is taken in a tree of chunks of its inputs, whatever the number of ranks, so that it always
has the same bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loire.base.errors import ConfigError
from loire.checkpoint.weights import Range

FEWEST_CHUNKS = 8
"""Of sums that so many processes may divide; of a number of processes that is no power of two, half
as many times its odd part."""
MOST_CHUNKS = 64
"""As the native kernels add up (source/runtime/ranks.h)."""
UNIT = 32
"""Inputs that share a scale where activations are rounded, and that kernels take in a step."""


class NotDivisibleError(ConfigError):
    """A model, or this number of ranks, does not go."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which rank of how many, and how many chunks sums are taken in; 0: there are none."""

    rank: int = 0
    size: int = 1
    chunks: int = 0

    def range_of(self, count: int) -> Range:
        """This rank's of things that are divided evenly."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def chunks_of(self, borders: Sequence[int]) -> Sequence[int]:
        """Borders of this rank's chunks."""
        first, end = self.range_of(self.chunks)
        return borders[first : end + 1]


WHOLE = Share()
"""Of a model that one rank has alone, without chunks."""


def settle_chunks(size: int, chunks: int | None) -> int:
    """How many chunks sums are taken in, where so many are asked for (None: nothing is said).

    Ranks hold whole branches of the tree that adds neighbours up by the least factors first, so
    the odd part of their number has to be that of the chunks.

    Raises ConfigError if the chunks cannot be divided among the ranks.
    """
    if size < 1:
        raise ConfigError(f"tensor_parallel_size must be at least 1, but is {size}")
    odd = size // (size & -size)
    if chunks is None:
        fewest = FEWEST_CHUNKS if odd == 1 else FEWEST_CHUNKS // 2
        chunks = 0 if size == 1 else odd * max(fewest, size & -size)
    if chunks > MOST_CHUNKS:
        raise ConfigError(
            f"tensor_parallel_size {size} needs sums of {chunks} chunks, but {MOST_CHUNKS} are the "
            f"most"
        )
    if chunks > 0 and not _divides(size, chunks):
        works = [n for n in range(1, chunks + 1) if _divides(n, chunks)]
        raise ConfigError(
            f"sums of {chunks} chunks go with a tensor_parallel_size of {listed(works)}, not {size}"
        )
    if chunks < 0 or (size > 1 and not chunks):
        raise ConfigError(f"sum_chunks must be at least {size}, but is {chunks}")
    return chunks


def _divides(size: int, chunks: int) -> bool:
    """Whether each rank has a whole branch of the tree."""
    each, rest = divmod(chunks, size)
    return size == 1 or (not rest and not each & (each - 1))


def borders_of_heads(inputs: int, head_dim: int, share: Share, block: int) -> tuple[int, ...]:
    """Borders of chunks of what heads give; those of ranks are borders of heads."""
    borders = borders_of(inputs, share.chunks, block, math.gcd(head_dim, UNIT))
    if borders[share.chunks // share.size] != inputs // share.size:
        raise NotDivisibleError(
            f"the {inputs // share.size} inputs of attention's output that a process would have "
            f"are not whole blocks of {block}"
        )
    return borders


def borders_of(size: int, chunks: int, block: int, unit: int) -> tuple[int, ...]:
    """Where each of the chunks of so many inputs begins, and the last one ends: at whole blocks,
    and at whole units where there are enough."""
    unit = math.lcm(unit, block)
    if size // unit < chunks:
        unit = block
    if size // unit < chunks:
        raise NotDivisibleError(f"{size} inputs in blocks of {block} make no {chunks} chunks")
    return (*(size // unit * n // chunks * unit for n in range(chunks)), size)


def listed(numbers: Sequence[int]) -> str:
    """Numbers as one writes them."""
    texts = [str(number) for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
