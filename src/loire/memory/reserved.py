"""Contiguous memory reserved ahead of time, as serving systems did before paging.

A sequence gets one run of pages for all it may become when it is admitted: its prompt and its
maximum output (what Orca was given), or the whole window (FasterTransformer). Nothing is shared,
and nothing given back before the end: layers with a window of their own reserve like all others.
"""

from collections.abc import Sequence

from loire.base.cache_geometry import CacheGeometry
from loire.base.config import Reserve
from loire.memory.allocator import Admitted, PageOperations, Refusal
from loire.memory.block_events import BlockEvent
from loire.memory.block_pool import BlockCounts
from loire.memory.block_table import BlockTable, GroupTable


class ReservedAllocator:
    """First fit over the free runs of pages, which are kept in order of position."""

    def __init__(
        self, num_blocks: int, geometry: CacheGeometry, *, reserve: Reserve, max_model_len: int
    ) -> None:
        """num_blocks: pages of the pool."""
        self.num_blocks = num_blocks
        self.geometry = geometry
        self.reserve = reserve
        self.max_model_len = max_model_len
        self._free: list[tuple[int, int]] = [(0, num_blocks)]
        """(first page, number of pages) of each free run; no two of them touch."""

    @property
    def counts(self) -> BlockCounts:
        """Pages by state; none is ever cached."""
        free = sum(length for _, length in self._free)
        return BlockCounts(free=free, cached=0, in_use=self.num_blocks - free)

    @property
    def largest_free_run(self) -> int:
        """Pages of the longest free run: what the next sequence can have at most. The rest of
        the free pages is lost to external fragmentation for a sequence that needs more."""
        return max((length for _, length in self._free), default=0)

    def admit(
        self, table: BlockTable, token_ids: Sequence[int], max_tokens: int, headroom: int
    ) -> Admitted | Refusal:
        """Reserve a run for everything the sequence may become.

        Sequences never ask for more later, so no headroom is needed.
        """
        assert not table.groups, "admitted twice"
        num_tokens = self.max_model_len if self.reserve == "window" else max_tokens
        counts = [g.blocks_for(num_tokens) + g.pages_per_state for g in self.geometry.groups]
        needed = sum(counts)
        for index, (first, length) in enumerate(self._free):
            if length >= needed:
                self._free[index : index + 1] = (
                    [(first + needed, length - needed)] if length > needed else []
                )
                table.groups = tuple(GroupTable() for _ in counts)
                for group, count in zip(table.groups, counts, strict=True):
                    group.blocks.extend(range(first, first + count))
                    first += count
                return Admitted(num_cached_tokens=0)
        return Refusal.NO_MEMORY

    def row_end(self, table: BlockTable, start: int, end: int) -> int:
        """No state is kept."""
        return end

    def extend(
        self, table: BlockTable, start: int, end: int, num_drafts: int = 0
    ) -> PageOperations | None:
        """What a sequence may become is reserved already; a state begins as zeros."""
        assert not (num_drafts and self.geometry.has_states), "no state is kept for drafted tokens"
        operations = PageOperations()
        for group, mine in zip(self.geometry.groups, table.groups, strict=True):
            fits = group.kind == "state" or group.blocks_for(end) <= len(mine.blocks)
            assert fits, "a sequence outgrew its reservation"
            if group.kind == "state" and start == 0:
                operations.zeroed += mine.blocks
        return operations

    def fork(
        self,
        parent: BlockTable,
        child: BlockTable,
        num_shared: int,
        token_ids: Sequence[int],
        max_tokens: int,
        headroom: int,
    ) -> Admitted | Refusal:
        """Contiguous memory cannot be shared: the sibling computes the prompt again."""
        return self.admit(child, token_ids, max_tokens, headroom)

    def publish(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Nobody can find anything here."""

    def truncate(self, table: BlockTable, num_tokens: int) -> int:
        """Nothing to do: the reservation stays."""
        return num_tokens

    def settle(self, table: BlockTable) -> None:
        """Nothing to do."""

    def release(self, table: BlockTable, *, forget: bool = False) -> None:
        """Give the run back and join it with its neighbours."""
        blocks = [block for group in table.groups for block in group.blocks]
        if blocks:
            self._free.append((blocks[0], len(blocks)))
            self._free.sort()
            self._join()
        table.groups = ()

    def take_events(self) -> Sequence[BlockEvent]:
        """None: nothing can be found."""
        return ()

    def take_names(self) -> tuple[bytes, bytes]:
        """None either."""
        return b"", b""

    def check(self) -> None:
        """Integrity check; raises AssertionError."""
        end = -1
        for first, length in self._free:
            assert length > 0, "a free run is empty"
            assert first > end, "free runs overlap or touch"
            end = first + length
        assert end <= self.num_blocks, "a free run leaves the pool"

    def _join(self) -> None:
        joined: list[tuple[int, int]] = []
        for first, length in self._free:
            if joined and sum(joined[-1]) == first:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((first, length))
        self._free = joined
