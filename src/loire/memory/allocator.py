"""The seam between scheduling and KV memory.

An allocator says what memory a sequence holds; it knows nothing of batches. There are two:
PagedAllocator (blocks just in time, shared by content) and, for the history of batching, one that
reserves memory ahead of time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from loire.base.cache_geometry import CacheGeometry
from loire.memory.block_events import BlockEvent
from loire.memory.block_pool import BlockCounts
from loire.memory.block_table import BlockTable

BlockCopy = tuple[int, int]
"""(source, target): copy what is in the page."""


@dataclass(slots=True)
class PageOperations:
    """What is done with whole pages in a step, beside computing: see StepPlan."""

    copies: list[BlockCopy] = field(default_factory=list)
    zeroed: list[int] = field(default_factory=list)
    snapshots: list[BlockCopy] = field(default_factory=list)


class Refusal(Enum):
    """Why a sequence cannot be admitted now."""

    NO_MEMORY = "no memory"
    PREFIX_PENDING = "another sequence is just computing its prefix"


@dataclass(frozen=True, slots=True)
class Admitted:
    """A sequence was admitted: this many of its leading tokens are in the cache already."""

    num_cached_tokens: int


class KVAllocator(Protocol):
    """Holds, shares and releases KV blocks for sequences."""

    geometry: CacheGeometry
    num_blocks: int
    """Pages of the pool."""

    @property
    def counts(self) -> BlockCounts:
        """Blocks by state."""
        ...

    def admit(
        self, table: BlockTable, token_ids: Sequence[int], max_tokens: int, headroom: int
    ) -> Admitted | Refusal:
        """Start holding memory for a sequence of known token_ids that may grow to max_tokens.

        headroom: pages that should stay available to those who run already.
        """
        ...

    def row_end(self, table: BlockTable, start: int, end: int) -> int:
        """Where a row from start on that might go up to end must end: there, or at an earlier
        position whose state is to be kept."""
        ...

    def extend(
        self, table: BlockTable, start: int, end: int, num_drafts: int = 0
    ) -> PageOperations | None:
        """Make positions start .. end - 1 writable, the last num_drafts of them drafted; returns
        what is to be done in the step that computes them.

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
    ) -> Admitted | Refusal:
        """Admit child, a sibling of parent: it shares what parent holds of the first num_shared
        tokens where the allocator can share, and is admitted like any other where it cannot."""
        ...

    def publish(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """The first num_computed tokens are computed now: others may share full blocks, and what
        is behind a window is given back."""
        ...

    def truncate(self, table: BlockTable, num_tokens: int) -> int:
        """Drafted tokens from position num_tokens on were not accepted: give back what only they
        need. None of them is published.

        Returns how many tokens are computed now: num_tokens, or fewer where a state can only be
        had from before the row.
        """
        ...

    def settle(self, table: BlockTable) -> None:
        """All drafted tokens of a row were accepted."""
        ...

    def release(self, table: BlockTable, *, forget: bool = False) -> None:
        """Give everything back. The table can be admitted again.

        forget: its KV is not to be trusted, so nobody may find it in the prefix cache.
        """
        ...

    def take_events(self) -> Sequence[BlockEvent]:
        """What became findable and what no more since the last time, if it is being noted."""
        ...

    def take_names(self) -> tuple[bytes, bytes]:
        """Names of prefixes that became findable, and that are no more, since the last time, if it
        is being noted; see loire.memory.prefix_names."""
        ...

    def check(self) -> None:
        """Integrity check; raises AssertionError."""
        ...
