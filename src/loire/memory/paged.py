"""Blocks given just in time, shared by content (Kwon et al. 2023, PagedAttention; vLLM's
automatic prefix caching).

Prefixes that are just being computed are known, too: who needs one waits for its owner instead of
computing it again (loire.memory.owners). What differs by kind of layer is in token_group.py and
state_group.py.
"""

from collections.abc import Sequence

from loire.base.cache_geometry import CacheGeometry
from loire.memory.allocator import Admitted, PageOperations, Refusal
from loire.memory.block_events import BlockEvent, BlockEvents
from loire.memory.block_pool import BlockCounts, BlockPool
from loire.memory.block_table import BlockTable, GroupTable
from loire.memory.hashing import extend_chain
from loire.memory.owners import PrefixOwners
from loire.memory.prefix_names import PrefixNames
from loire.memory.state_group import LEAST_APART, StateGroup, StateTable, state_marks
from loire.memory.token_group import TokenGroup

NOTHING = PageOperations()
"""Of most steps. Nobody writes into it."""


class PagedAllocator:
    """The default allocator. prefix_caching=False shares blocks among siblings only."""

    def __init__(
        self,
        num_blocks: int,
        geometry: CacheGeometry,
        *,
        prefix_caching: bool,
        most_ahead: int = 2**40,
        notes_events: bool = False,
        notes_names: bool = False,
    ) -> None:
        """num_blocks: pages of the pool. most_ahead: tokens of one sequence that are being computed
        at a time, at most: a window holds so many more. notes_events: for take_events();
        notes_names: for take_names()."""
        self._events: BlockEvents | None = None
        if notes_events:
            kinds = enumerate(group.kind for group in geometry.groups)
            self._events = BlockEvents({index for index, kind in kinds if kind != "state"})
        self._names = PrefixNames(geometry) if notes_names else None
        noting = self._note_removed if notes_events or notes_names else None
        self.pool = BlockPool(num_blocks, noting)
        self.num_blocks = num_blocks
        self.geometry = geometry
        self.prefix_caching = prefix_caching
        finest = geometry.block_size
        self._groups = [
            None
            if group.kind == "state"
            else TokenGroup(index, group, self.pool, finest, most_ahead)
            for index, group in enumerate(geometry.groups)
        ]
        self._tokens = [
            (index, group) for index, group in enumerate(self._groups) if group is not None
        ]
        self._states = [
            (index, StateGroup(index, group, self.pool, finest))
            for index, group in enumerate(geometry.groups)
            if group.kind == "state"
        ]
        self._gives_back = any(group.window is not None for group in geometry.groups)
        self._unit = geometry.unit
        self._finest = finest
        self._owners = PrefixOwners(finest, self._unit, by_mark=bool(self._states))
        self._num_promised = 0
        """Pages that admitted sequences will still take for tokens they know already."""
        self._num_tables = 0
        """Sequences that were admitted and not released yet."""

    @property
    def counts(self) -> BlockCounts:
        """Pages by state."""
        return self.pool.counts

    def admit(
        self, table: BlockTable, token_ids: Sequence[int], max_tokens: int, headroom: int
    ) -> Admitted | Refusal:
        """Take the cached prefix of token_ids, if memory for the rest can be expected.

        The last token is always left to compute: its logits are needed.
        """
        assert not table.groups, "admitted twice"
        num_tokens, hit = len(token_ids), 0
        if self.prefix_caching:
            extend_chain(table.chain, table.root, token_ids, self._finest)
            if table.reads_cache:
                hit = self._longest_prefix(table.chain, num_tokens - 1)
                if self._owners.is_pending(table, hit, num_tokens - 1):
                    return Refusal.PREFIX_PENDING
        shared = [group.found(table.chain, hit) for _, group in self._tokens]
        sources = [group.find(table.chain, hit) or [] if hit else [] for _, group in self._states]
        num_new = sum(
            group.most_new(num_tokens, hit, len(blocks))
            for (_, group), blocks in zip(self._tokens, shared, strict=True)
        )
        if not self._can_take(num_new, [*shared, *sources], headroom):
            return Refusal.NO_MEMORY
        self._enter(table, num_tokens, hit)
        for (index, group), blocks in zip(self._tokens, shared, strict=True):
            group.enter(table.groups[index], blocks, hit)
            table.groups[index].num_published = hit // group.size
        marks: list[int] = []
        if self._states and self.prefix_caching:
            marks = state_marks(table, num_tokens, hit, self._unit)
        for (index, state), source in zip(self._states, sources, strict=True):
            state.enter(_state(table, index), source, marks)
        self._renew_promises(table)
        if self.prefix_caching:
            self._owners.claim(table, hit, marks)
        return Admitted(hit)

    def fork(
        self,
        parent: BlockTable,
        child: BlockTable,
        num_shared: int,
        token_ids: Sequence[int],
        max_tokens: int,
        headroom: int,
    ) -> Admitted | Refusal:
        """See KVAllocator. A last, partly filled block is copied when one of them writes it.

        Where the parent has given back what the child would need, it is admitted like any other.
        """
        assert not child.groups, "forked into a table that holds blocks"
        shared = [group.share(parent.groups[index], num_shared) for index, group in self._tokens]
        has_states = all(_state(parent, i).fork_state for i, _ in self._states) or not num_shared
        if None in shared or not has_states:
            return self.admit(child, token_ids, max_tokens, headroom)
        num_new = sum(
            group.most_new(len(token_ids), num_shared, len(blocks or ()))
            + (num_shared % group.size > 0)
            for (_, group), blocks in zip(self._tokens, shared, strict=True)
        )
        if not self._can_take(num_new, (), headroom):
            return Refusal.NO_MEMORY
        self._enter(child, len(token_ids), num_shared)
        for (index, group), blocks in zip(self._tokens, shared, strict=True):
            mine = child.groups[index]
            group.enter(mine, blocks or (), num_shared)
            published = parent.groups[index].num_published
            mine.num_published = min(published, num_shared // group.size)
            mine.copies_tail = num_shared % group.size > 0
        for index, state in self._states:
            state.fork(_state(parent, index), _state(child, index), num_shared)
        parent.num_forks -= 1
        if parent.num_forks <= 0:
            for index, state in self._states:
                state.drop_fork_state(_state(parent, index))
        self._renew_promises(child)
        return Admitted(num_shared)

    def row_end(self, table: BlockTable, start: int, end: int) -> int:
        """See KVAllocator."""
        if not self._states:
            return end
        marks = [mark for index, _ in self._states for mark in _state(table, index).marks]
        if table.fork_at is not None:
            marks.append(table.fork_at)
        return min((mark for mark in marks if start < mark < end), default=end)

    def extend(
        self, table: BlockTable, start: int, end: int, num_drafts: int = 0
    ) -> PageOperations | None:
        """See KVAllocator. Copies a block on write that others read or could find."""
        num_needed = num_promised = 0
        for index, group in self._tokens:
            mine = table.groups[index]
            num_needed += group.num_missing(mine, end) + group.must_copy(mine, start)
            num_promised += mine.num_promised
        for index, state in self._states:
            num_needed += state.num_missing(_state(table, index), num_drafts)
        if num_needed > self.pool.num_available:
            # What siblings would start from goes first: they can compute it again.
            for index, state in self._states:
                state.drop_fork_state(_state(table, index))
            if num_needed > self.pool.num_available:
                return None
        table.num_scheduled = end
        if num_drafts:
            table.drafted_from = start
        if not num_needed and not num_promised and not self._states:
            return NOTHING
        operations = PageOperations()
        for index, group in self._tokens:
            mine = table.groups[index]
            if group.must_copy(mine, start):
                operations.copies.append(group.copy(mine, start))
            mine.copies_tail = False
            group.take(mine, group.num_missing(mine, end))
        for index, state in self._states:
            state.begin(_state(table, index), operations, start, num_drafts, table.fork_at)
        self._renew_promises(table)
        for index, state in self._states:
            mine_state = _state(table, index)
            if self.prefix_caching and not num_drafts and end > table.num_known:
                self._mark_generated(mine_state, end)
            self._mark_reached(state, mine_state, operations, table, end)
        return operations

    def publish(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """See KVAllocator. A block whose twin is published already stays private."""
        num_full = num_computed // self._finest
        if num_full == table.num_disowned and not self._gives_back and not self._states:
            return  # as in most steps: no block was filled
        if self.prefix_caching:
            if len(table.chain) < num_full:
                extend_chain(table.chain, table.root, token_ids, self._finest)
            for index, group in self._tokens:
                mine = table.groups[index]
                if num_computed // group.size > mine.num_published:
                    found = group.publish(mine, table.chain, num_computed)
                    if self._events is not None and found and not table.is_private:
                        for event in group.stored(table, token_ids, found):
                            self._events.stored(event)
                    if self._names is not None:
                        ends = (group.key(table.chain, block)[1:] for block in found)
                        self._names.stored(index, ends)
            for index, state in self._states:
                mine_state = _state(table, index)
                done = state.publish(mine_state, table.chain, num_computed, table.num_known)
                for position in done:
                    self._owners.reach(table, position)
                    if self._names is not None:
                        self._names.stored(index, [table.chain[position // self._finest - 1]])
            if num_full > table.num_disowned:
                self._owners.disown(table, num_full)
        for index, group in self._tokens:
            if group.drop_behind(table.groups[index], num_computed):
                self._renew_promise(table.groups[index], group, table.num_known)

    def truncate(self, table: BlockTable, num_tokens: int) -> int:
        """See KVAllocator."""
        for index, group in self._tokens:
            group.truncate(table.groups[index], num_tokens)
        for index, state in self._states:
            state.settle(_state(table, index), restore=True)
        table.num_scheduled = table.drafted_from if self._states else num_tokens
        return table.num_scheduled

    def settle(self, table: BlockTable) -> None:
        """See KVAllocator."""
        for index, state in self._states:
            state.settle(_state(table, index), restore=False)

    def release(self, table: BlockTable, *, forget: bool = False) -> None:
        """See KVAllocator. The tail is released first, so that it is evicted before its prefix."""
        held = [
            ((position + 1) * group.size, mine.blocks[position])
            for index, group in self._tokens
            for mine in (table.groups[index],)
            for position in range(mine.first, len(mine.blocks))
        ]
        if forget:
            for _, block in held:
                self.pool.withdraw(block)
            for index, state in self._states:
                state.forget(_state(table, index), table.chain)
        self._owners.leave(table)
        for _, block in sorted(held, reverse=True, key=lambda entry: entry[0]):
            self.pool.release(block)
        for index, state in self._states:
            state.release(_state(table, index), table.chain)
        self._num_promised -= table.num_promised
        table.groups = ()
        self._num_tables -= 1

    def take_events(self) -> Sequence[BlockEvent]:
        """See KVAllocator."""
        return () if self._events is None else self._events.take()

    def take_names(self) -> tuple[bytes, bytes]:
        """See KVAllocator."""
        return (b"", b"") if self._names is None else self._names.take()

    def _note_removed(self, pool_key: bytes) -> None:
        if self._events is not None:
            self._events.removed(pool_key)
        if self._names is not None:
            self._names.removed(pool_key)

    def check(self) -> None:
        """See KVAllocator."""
        self.pool.check()
        assert self._num_promised >= 0, "promised pages are negative"
        if self._num_tables == 0:
            assert self.pool.counts.in_use == 0, "pages are held by nobody"
            assert self._num_promised == 0, "pages are promised to nobody"
            assert self._owners.is_empty, "prefixes are owned by nobody"

    def _longest_prefix(self, chain: Sequence[bytes], most: int) -> int:
        """Tokens after which every group finds all that it needs."""
        found, last = most, -1
        while found != last:
            last = found
            for _, group in self._tokens:
                found = group.longest_prefix(chain, found, self._unit)
            for _, state in self._states:
                found = state.longest_prefix(chain, found, self._unit)
        return found

    def _can_take(self, num_new: int, shared: Sequence[Sequence[int]], headroom: int) -> bool:
        """Whether so many pages, and slots, can be had beside the shared ones and the promises."""
        num_new += sum(state.num_pages for _, state in self._states)
        cached = sum(self.pool.is_cached(block) for blocks in shared for block in blocks)
        return num_new + headroom <= self.pool.num_available - cached - self._num_promised

    def _enter(self, table: BlockTable, num_tokens: int, num_shared: int) -> None:
        table.groups = tuple(StateTable() if g is None else GroupTable() for g in self._groups)
        table.num_known = num_tokens
        table.num_scheduled = num_shared
        table.num_disowned = num_shared // self._finest
        self._num_tables += 1

    def _renew_promises(self, table: BlockTable) -> None:
        for index, group in self._tokens:
            self._renew_promise(table.groups[index], group, table.num_known)
        for index, state in self._states:
            mine = table.groups[index]
            promised = 0 if mine.blocks else state.num_pages
            self._num_promised += promised - mine.num_promised
            mine.num_promised = promised

    def _renew_promise(self, mine: GroupTable, group: TokenGroup, num_known: int) -> None:
        promised = group.promise(mine, num_known)
        self._num_promised += promised - mine.num_promised
        mine.num_promised = promised

    def _mark_generated(self, mine: StateTable, end: int) -> None:
        """Keep the state within an answer, too, every now and then: the next turn goes on there.

        (Not behind drafted tokens, which may not be accepted.)
        """
        if end % (-(-LEAST_APART // self._unit) * self._unit) == 0:
            mine.marks = [end]

    def _mark_reached(
        self,
        state: StateGroup,
        mine: StateTable,
        operations: PageOperations,
        table: BlockTable,
        end: int,
    ) -> None:
        """Keep the state after a step that ends at end, if it is wanted and there is room."""
        wanted = end in mine.marks or (end == table.fork_at and table.num_forks > 0)
        if wanted and state.num_pages <= self.pool.num_available - self._num_promised:
            operations.snapshots += state.take_snapshot(mine, end, table.fork_at)
        elif end in mine.marks:
            self._owners.reach(table, end)  # nobody need wait for it
        mine.marks = [mark for mark in mine.marks if mark > end]


def _state(table: BlockTable, index: int) -> StateTable:
    mine = table.groups[index]
    assert isinstance(mine, StateTable)
    return mine
