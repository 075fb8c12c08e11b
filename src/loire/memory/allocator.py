"""The seam between scheduling and KV memory.

An allocator says what memory a sequence holds; it knows nothing of batches. There are two:
PagedAllocator (blocks just in time, shared by content) and, for the history of batching, one that
reserves memory ahead of time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from loire.memory.block_pool import BlockCounts
from loire.memory.block_table import BlockTable

BlockCopy = tuple[int, int]
"""(source, target): copy the block's KV before anything is written in this step."""


class Refusal(Enum):
    """Why a sequence cannot be admitted now."""

    NO_MEMORY = "no memory"
    PREFIX_PENDING = "another sequence is just computing its prefix"


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence was admitted: this many of its leading tokens are in the cache already."""

    num_cached_tokens: int


class KVAllocator(Protocol):
    """Holds, shares and releases KV blocks for sequences."""

    block_size: int
    num_blocks: int

    @property
    def counts(self) -> BlockCounts:
        """Blocks by state."""
        ...

    def admit(
        self, table: BlockTable, token_ids: Sequence[int], max_tokens: int, headroom: int
    ) -> Admission | Refusal:
        """Start holding memory for a sequence of known token_ids that may grow to max_tokens.

        headroom: blocks that should stay available to those who run already.
        """
        ...

    def extend(self, table: BlockTable, start: int, end: int) -> list[BlockCopy] | None:
        """Make positions start .. end - 1 writable; returns copies to make first.

        None if there is not enough memory; nothing has changed then.
        """
        ...

    def fork(
        self,
        parent: BlockTable,
        child: BlockTable,
        num_shared: int,
        token_ids: Sequence[int],
        max_tokens: int,
        headroom: int,
    ) -> Admission | Refusal:
        """Admit child, a sibling of parent: it shares what parent holds of the first num_shared
        tokens where the allocator can share, and is admitted like any other where it cannot."""
        ...

    def publish(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """The KV of the first num_computed tokens is valid now: others may share full blocks."""
        ...

    def truncate(self, table: BlockTable, num_tokens: int) -> None:
        """Give back what only positions from num_tokens on need: drafted tokens that were not
        accepted. None of them is published."""
        ...

    def release(self, table: BlockTable, *, forget: bool = False) -> None:
        """Give everything back. The table can be admitted again.

        forget: its KV is not to be trusted, so nobody may find it in the prefix cache.
        """
        ...

    def check(self) -> None:
        """Integrity check; raises AssertionError."""
        ...
