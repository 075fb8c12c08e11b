"""Blocks given just in time, shared by content (Kwon et al. 2023, PagedAttention; vLLM's
automatic prefix caching).

Prefixes that are just being computed are known, too: who needs one waits for its owner instead of
computing it again.
"""

from collections.abc import Sequence

from loire.memory.allocator import Admission, BlockCopy, Refusal
from loire.memory.block_pool import BlockCounts, BlockPool
from loire.memory.block_table import BlockTable
from loire.memory.hashing import extend_chain


class PagedAllocator:
    """The default allocator. prefix_caching=False shares blocks among siblings only."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        self.pool = BlockPool(num_blocks)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._owners: dict[bytes, BlockTable] = {}
        """Prefixes (by hash) that a running sequence has yet to compute, and whose."""
        self._num_promised = 0
        """Blocks that admitted sequences will still take for tokens they know already."""
        self._num_tables = 0
        """Sequences that were admitted and not released yet."""

    @property
    def counts(self) -> BlockCounts:
        """Blocks by state."""
        return self.pool.counts

    def admit(
        self, table: BlockTable, token_ids: Sequence[int], max_tokens: int, headroom: int
    ) -> Admission | Refusal:
        """Take the cached prefix of token_ids, if memory for the rest can be expected.

        The last token is always left to compute: its logits are needed.
        """
        assert not table.blocks, "admitted twice"
        hits: list[int] = []
        if self.prefix_caching:
            extend_chain(table.chain, table.root, token_ids, self.block_size)
            if table.reads_cache:
                num_readable = (len(token_ids) - 1) // self.block_size
                hits = self._find_prefix(table.chain[:num_readable])
                if len(hits) < num_readable and self._is_pending(table.chain[len(hits)], table):
                    return Refusal.PREFIX_PENDING
        num_new = self._blocks_for(len(token_ids)) - len(hits)
        taken_from_cache = sum(self.pool.is_cached(block) for block in hits)
        available = self.pool.num_available - taken_from_cache - self._num_promised
        if num_new + headroom > available:
            return Refusal.NO_MEMORY
        for block in hits:
            self.pool.share(block)
        self._num_tables += 1
        table.blocks.extend(hits)
        table.num_published = table.num_shared = len(hits)
        self._promise(table, num_new)
        if self.prefix_caching:
            for key in table.chain[len(hits) :]:
                if not self._is_pending(key, table):
                    self._owners[key] = table
        return Admission(len(hits) * self.block_size)

    def extend(self, table: BlockTable, start: int, end: int) -> list[BlockCopy] | None:
        """See KVAllocator. Copies a block on write that others read or could find."""
        first = start // self.block_size
        held = table.blocks
        must_copy = first < len(held) and not self.pool.is_exclusive(held[first])
        num_new = max(self._blocks_for(end) - len(held), 0)
        if num_new + must_copy > self.pool.num_available:
            return None
        copies: list[BlockCopy] = []
        if must_copy:
            source, target = held[first], self.pool.take()
            copies.append((source, target))
            held[first] = target
            table.num_published = min(table.num_published, first)
            table.num_shared = min(table.num_shared, first)
            table.num_told = min(table.num_told, first)
            # The copy is read before anything is written in this step, so the source may go.
            self.pool.release(source)
        held.extend(self.pool.take() for _ in range(num_new))
        self._promise(table, max(table.num_promised - num_new - must_copy, 0))
        return copies

    def fork(
        self,
        parent: BlockTable,
        child: BlockTable,
        num_shared: int,
        token_ids: Sequence[int],
        max_tokens: int,
        headroom: int,
    ) -> Admission | Refusal:
        """See KVAllocator. The last, partly filled block is copied when one of them writes it."""
        assert not child.blocks, "forked into a table that holds blocks"
        num_held = self._blocks_for(num_shared)
        num_new = self._blocks_for(len(token_ids)) - num_held
        num_copies = 1 if num_shared % self.block_size else 0
        if num_new + num_copies + headroom > self.pool.num_available - self._num_promised:
            return Refusal.NO_MEMORY
        self._num_tables += 1
        child.blocks.extend(parent.blocks[:num_held])
        child.num_published = min(parent.num_published, num_shared // self.block_size)
        child.num_shared = num_held
        for block in child.blocks:
            self.pool.share(block)
        self._promise(child, num_new + num_copies)
        return Admission(num_shared)

    def publish(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """See KVAllocator. A block whose twin is published already stays private."""
        num_full = num_computed // self.block_size
        if not self.prefix_caching or num_full <= table.num_published:
            return
        if len(table.chain) < num_full:
            extend_chain(table.chain, table.root, token_ids, self.block_size)
        for index in range(table.num_published, num_full):
            self.pool.publish(table.blocks[index], table.chain[index])
            self._disown(table, index)
        table.num_published = num_full

    def truncate(self, table: BlockTable, num_tokens: int) -> None:
        """See KVAllocator."""
        num_kept = self._blocks_for(num_tokens)
        assert num_kept >= table.num_published, "published tokens are taken back"
        while len(table.blocks) > num_kept:
            self.pool.release(table.blocks.pop())
        table.num_told = min(table.num_told, num_kept)

    def release(self, table: BlockTable, *, forget: bool = False) -> None:
        """See KVAllocator. The tail is released first, so that it is evicted before its prefix."""
        if forget:
            for block in table.blocks:
                self.pool.withdraw(block)
        for index in range(table.num_published, len(table.chain)):
            self._disown(table, index)
        self._promise(table, 0)
        for block in reversed(table.blocks):
            self.pool.release(block)
        table.blocks.clear()
        table.num_published = table.num_shared = table.num_told = 0
        self._num_tables -= 1

    def check(self) -> None:
        """See KVAllocator."""
        self.pool.check()
        assert self._num_promised >= 0, "promised blocks are negative"
        if self._num_tables == 0:
            assert self.pool.counts.in_use == 0, "blocks are held by nobody"
            assert self._num_promised == 0, "blocks are promised to nobody"
            assert not self._owners, "prefixes are owned by nobody"

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _find_prefix(self, chain: Sequence[bytes]) -> list[int]:
        hits: list[int] = []
        for key in chain:
            block = self.pool.find(key)
            if block is None:
                break
            hits.append(block)
        return hits

    def _is_pending(self, key: bytes, table: BlockTable) -> bool:
        """Whether a sequence that is as urgent, or more so, is computing this prefix."""
        owner = self._owners.get(key)
        return owner is not None and owner.priority <= table.priority

    def _promise(self, table: BlockTable, num_blocks: int) -> None:
        self._num_promised += num_blocks - table.num_promised
        table.num_promised = num_blocks

    def _disown(self, table: BlockTable, index: int) -> None:
        if self._owners.get(table.chain[index]) is table:
            del self._owners[table.chain[index]]
