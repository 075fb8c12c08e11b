"""Blocks of tokens: what a sequence holds in a group of layers that see all, or a window.

Behind a window blocks are given back; those that were published can still be found, until their
memory is needed.
"""

from collections.abc import Iterator, Sequence

from loire.base.cache_geometry import CacheGroup
from loire.memory.block_events import BlocksStored
from loire.memory.block_pool import BlockPool
from loire.memory.block_table import BlockTable, GroupTable


class TokenGroup:
    """One cache group's part of the allocator's work; the pool is all groups'."""

    def __init__(
        self, index: int, group: CacheGroup, pool: BlockPool, finest: int, most_ahead: int
    ) -> None:
        """finest: tokens per entry of the hash chain. most_ahead: tokens of one sequence that are
        being computed at a time, at most."""
        self.size = group.block_size
        self._group = group
        self._pool = pool
        self._prefix = bytes([index])
        self._hashes = group.block_size // finest
        self._has_window = group.window is not None
        self._most_ahead = most_ahead

    def key(self, chain: Sequence[bytes], block: int) -> bytes:
        """By which a block's content is found: the group, and all tokens up to the block's end."""
        return self._prefix + chain[(block + 1) * self._hashes - 1]

    def longest_prefix(self, chain: Sequence[bytes], most: int, unit: int) -> int:
        """Tokens, a multiple of unit and at most most, after which all that is needed is found."""
        if not self._has_window:
            for block in range(most // self.size):
                if self._pool.find(self.key(chain, block)) is None:
                    return block * self.size // unit * unit
            return most // unit * unit
        end = most // unit * unit
        block = end // self.size - 1
        while end and block >= self._group.first_needed(end):
            if self._pool.find(self.key(chain, block)) is None:
                end = block * self.size // unit * unit
                block = end // self.size
            block -= 1
        return end

    def found(self, chain: Sequence[bytes], num_tokens: int) -> list[int]:
        """Blocks that hold what is needed after num_tokens tokens, all of them found."""
        blocks = []
        for index in range(self._group.first_needed(num_tokens), num_tokens // self.size):
            block = self._pool.find(self.key(chain, index))
            assert block is not None, "a prefix lacks a block"
            blocks.append(block)
        return blocks

    def enter(self, table: GroupTable, shared: Sequence[int], num_tokens: int) -> None:
        """Start with shared blocks, which hold what is needed after num_tokens tokens."""
        for block in shared:
            self._pool.share(block)
        table.first = self._group.first_needed(num_tokens)
        table.blocks = [0] * table.first + list(shared)
        table.num_shared = len(table.blocks)

    def promise(self, table: GroupTable, num_known: int) -> int:
        """Blocks that the known tokens will need at a time, beside those held."""
        ahead = self._group.blocks_for(num_known) - table.first
        if self._has_window:
            ahead = min(ahead, self._group.most_held(num_known, self._most_ahead))
        return max(ahead - table.num_held, 0) + table.copies_tail

    def most_new(self, num_known: int, num_shared: int, num_held: int) -> int:
        """What promise() will be of a sequence that starts with num_held blocks of a prefix."""
        ahead = self._group.blocks_for(num_known) - self._group.first_needed(num_shared)
        if self._has_window:
            ahead = min(ahead, self._group.most_held(num_known, self._most_ahead))
        return max(ahead - num_held, 0)

    def must_copy(self, table: GroupTable, start: int) -> bool:
        """Whether others read the block of position start, which is to be written, or find it."""
        index = start // self.size
        blocks = table.blocks
        return index < len(blocks) and not self._pool.is_exclusive(blocks[index])

    def num_missing(self, table: GroupTable, end: int) -> int:
        """Blocks to be taken before position end - 1 can be written."""
        return max(-(-end // self.size) - len(table.blocks), 0)

    def copy(self, table: GroupTable, start: int) -> tuple[int, int]:
        """Put a block of its own in the place of the one at position start; (source, target)."""
        index = start // self.size
        source, target = table.blocks[index], self._pool.take()
        table.blocks[index] = target
        table.num_shared = min(table.num_shared, index)
        table.num_told = min(table.num_told, index)
        # The copy is read before anything is written in this step, so the source may go.
        self._pool.release(source)
        return source, target

    def take(self, table: GroupTable, num_blocks: int) -> None:
        """Take blocks for positions behind those it has."""
        table.blocks.extend(self._pool.take() for _ in range(num_blocks))

    def publish(self, table: GroupTable, chain: Sequence[bytes], num_computed: int) -> list[int]:
        """Let others find the full blocks; one whose twin is published already stays private.

        Returns the indices of those that can be found now and could not before.
        """
        num_full = num_computed // self.size
        new = [
            index
            for index in range(max(table.num_published, table.first), num_full)
            if self._pool.publish(table.blocks[index], self.key(chain, index))
        ]
        table.num_published = max(table.num_published, num_full)
        return new

    def stored(
        self, table: BlockTable, token_ids: Sequence[int], indices: Sequence[int]
    ) -> Iterator[BlocksStored]:
        """What is told of blocks that can be found now: an event for each run of neighbours."""
        index, size = self._prefix[0], self.size
        for first, end in _runs(indices):
            keys = tuple(self.key(table.chain, block)[1:] for block in range(first, end))
            yield BlocksStored(
                group=index,
                keys=keys,
                parent=self.key(table.chain, first - 1)[1:] if first else None,
                token_ids=tuple(token_ids[first * size : end * size]),
                block_size=size,
                window=self._group.window,
                adapter=table.adapter,
            )

    def drop_behind(self, table: GroupTable, num_computed: int) -> bool:
        """Give back what no token from num_computed on sees; whether there was anything."""
        if not self._has_window:
            return False
        first = min(self._group.first_needed(num_computed), len(table.blocks))
        if first <= table.first:
            return False
        for index in range(table.first, first):
            self._pool.release(table.blocks[index])
            table.blocks[index] = 0
        table.first = first
        return True

    def share(self, parent: GroupTable, num_tokens: int) -> list[int] | None:
        """The parent's blocks that hold what is needed after num_tokens tokens; None if it has
        given some of them back."""
        first = self._group.first_needed(num_tokens)
        return None if first < parent.first else parent.blocks[first : -(-num_tokens // self.size)]

    def truncate(self, table: GroupTable, num_tokens: int) -> None:
        """Give back the blocks that only later positions need."""
        num_kept = -(-num_tokens // self.size)
        assert num_kept >= table.num_published, "published tokens are taken back"
        while len(table.blocks) > num_kept:
            self._pool.release(table.blocks.pop())
        table.num_told = min(table.num_told, num_kept)


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of neighbours among ascending indices."""
    first = None
    for place, index in enumerate(indices):
        if first is None:
            first = index
        if place + 1 == len(indices) or indices[place + 1] != index + 1:
            yield first, index + 1
            first = None
