"""Contiguous memory reserved ahead of time, as serving systems did before paging.

A sequence gets one run of blocks for all it may become when it is admitted: its prompt and its
maximum output (what Orca was given), or the whole window (FasterTransformer). Nothing is shared.
"""

from collections.abc import Sequence

from loire.base.config import Reserve
from loire.memory.allocator import Admission, BlockCopy, Refusal
from loire.memory.block_pool import BlockCounts
from loire.memory.block_table import BlockTable


class ReservedAllocator:
    """First fit over the free runs of blocks, which are kept in order of position."""

    def __init__(
        self, num_blocks: int, block_size: int, *, reserve: Reserve, max_model_len: int
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.reserve = reserve
        self.max_model_len = max_model_len
        self._free: list[tuple[int, int]] = [(0, num_blocks)]
        """(first block, number of blocks) of each free run; no two of them touch."""

    @property
    def counts(self) -> BlockCounts:
        """Blocks by state; none is ever cached."""
        free = sum(length for _, length in self._free)
        return BlockCounts(free=free, cached=0, in_use=self.num_blocks - free)

    @property
    def largest_free_run(self) -> int:
        """Blocks of the longest free run: what the next sequence can have at most. The rest of
        the free blocks is lost to external fragmentation for a sequence that needs more."""
        return max((length for _, length in self._free), default=0)

    def admit(
        self, table: BlockTable, token_ids: Sequence[int], max_tokens: int, headroom: int
    ) -> Admission | Refusal:
        """Reserve a run for everything the sequence may become.

        Sequences never ask for more later, so no headroom is needed.
        """
        assert not table.blocks, "admitted twice"
        num_tokens = self.max_model_len if self.reserve == "window" else max_tokens
        needed = -(-num_tokens // self.block_size)
        for index, (first, length) in enumerate(self._free):
            if length >= needed:
                self._free[index : index + 1] = (
                    [(first + needed, length - needed)] if length > needed else []
                )
                table.blocks.extend(range(first, first + needed))
                return Admission(num_cached_tokens=0)
        return Refusal.NO_MEMORY

    def extend(self, table: BlockTable, start: int, end: int) -> list[BlockCopy] | None:
        """Nothing to do: what a sequence may become is reserved already."""
        assert end <= len(table.blocks) * self.block_size, "a sequence outgrew its reservation"
        return []

    def fork(
        self,
        parent: BlockTable,
        child: BlockTable,
        num_shared: int,
        token_ids: Sequence[int],
        max_tokens: int,
        headroom: int,
    ) -> Admission | Refusal:
        """Contiguous memory cannot be shared: the sibling computes the prompt again."""
        return self.admit(child, token_ids, max_tokens, headroom)

    def publish(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Nobody can find anything here."""

    def truncate(self, table: BlockTable, num_tokens: int) -> None:
        """Nothing to do: the reservation stays."""

    def release(self, table: BlockTable, *, forget: bool = False) -> None:
        """Give the run back and join it with its neighbours."""
        if table.blocks:
            self._free.append((table.blocks[0], len(table.blocks)))
            self._free.sort()
            self._join()
            table.blocks.clear()
            table.num_told = 0

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
