"""The paged allocator under random operations, with a model of what each block holds."""

from collections import Counter
from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loire.base.cache_geometry import CacheGeometry, CacheGroup, CacheKind, one_group
from loire.memory.allocator import Admitted, BlockCopy, Refusal
from loire.memory.block_events import BlocksRemoved
from loire.memory.block_table import BlockTable
from loire.memory.hashing import extend_chain, root_hash
from loire.memory.paged import PagedAllocator
from loire.memory.prefix_names import NAME_BYTES, split, telling_group
from loire.memory.state_group import StateTable

NUM_BLOCKS, BLOCK_SIZE = 12, 4
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=24)
SALTS = ("", "tenant")

Content = tuple[str, tuple[int, ...]]
"""(salt, tokens up to and including this position): what one position's KV depends on."""


def group(kind: CacheKind, size: int = 0, window: int | None = None, pages: int = 0) -> CacheGroup:
    return CacheGroup(kind, (0,), size, 1, window, pages_per_state=pages)


GEOMETRIES = [
    one_group(BLOCK_SIZE),
    CacheGeometry((group("window", 4, 6), group("full", 4)), 4, 4),
    CacheGeometry((group("window", 2, 5), group("full", 6), group("window", 4, 9)), 4, 2),
    CacheGeometry((group("full", 4), group("state", pages=2)), 4, 4),
    CacheGeometry((group("window", 4, 6), group("full", 8), group("state", pages=1)), 4, 4),
]


@dataclass(eq=False)
class Holder:
    """A sequence: its tokens, how many are computed, and its table."""

    salt: str
    tokens: list[int]
    num_computed: int
    table: BlockTable


class PagedMachine(RuleBasedStateMachine):
    """Plays the scheduler's part: admit, extend, compute, draft, publish, fork, release."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Holder] = []
        self.memory: dict[tuple[int, int], Content] = {}
        """By page and offset; a state lies at offset 0 of its pages."""

    @initialize(geometry=st.sampled_from(GEOMETRIES), ahead=st.integers(1, 30))
    def start(self, geometry: CacheGeometry, ahead: int) -> None:
        self.geometry = geometry
        self.allocator = PagedAllocator(
            NUM_BLOCKS * len(geometry.groups),
            geometry,
            prefix_caching=True,
            most_ahead=ahead,
            notes_events=True,
            notes_names=True,
        )
        self.names: set[bytes] = set()
        """What a follower of the names believes."""
        self.told: dict[tuple[int, bytes], bytes | None] = {}
        """What a follower of the events believes to be findable: the parents of hashes by group."""

    @rule(
        tokens=TOKENS,
        salt=st.sampled_from(SALTS),
        reads_cache=st.booleans(),
        headroom=st.integers(0, 3),
        forks=st.booleans(),
        marks=st.lists(st.integers(0, 24), max_size=2),
    )
    def admit(
        self,
        tokens: list[int],
        salt: str,
        reads_cache: bool,
        headroom: int,
        forks: bool,
        marks: list[int],
    ) -> None:
        table = BlockTable(
            root=root_hash(salt),
            reads_cache=reads_cache,
            marks=tuple(marks),
            fork_at=len(tokens) - 1 if forks else None,
            num_forks=2 if forks else 0,
        )
        before = self.allocator.counts
        admission = self.allocator.admit(table, tokens, len(tokens) + 8, headroom)
        if not isinstance(admission, Admitted):
            assert self.allocator.counts == before
            assert not table.groups
            if admission is Refusal.PREFIX_PENDING:
                assert reads_cache
                assert any(h.num_computed < len(h.tokens) for h in self.running)
            return
        cached = admission.num_cached_tokens
        assert cached < len(tokens), "the last token is left to compute"
        assert cached % self.geometry.unit == 0
        assert reads_cache or cached == 0
        holder = Holder(salt, list(tokens), cached, table)
        self._check_content(holder)
        self.running.append(holder)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), num_tokens=st.integers(1, 9), num_drafts=st.sampled_from([0, 0, 1, 3]))
    def compute(self, data: st.DataObject, num_tokens: int, num_drafts: int) -> None:
        """A chunk of the known tokens, or one more, perhaps with drafted ones."""
        holder = data.draw(st.sampled_from(self.running))
        start, known = holder.num_computed, list(holder.tokens)
        if start == len(known):
            known.append(data.draw(st.integers(0, 1)))
        drafts = [data.draw(st.integers(0, 1)) for _ in range(num_drafts)]
        end = min(start + num_tokens, len(known))
        if end < len(known):
            drafts = []
        row_end = self.allocator.row_end(holder.table, start, end)
        assert start < row_end <= end
        if row_end < end:
            end, drafts = row_end, []
        before = [list(g.blocks) for g in holder.table.groups]
        done = self.allocator.extend(holder.table, start, end + len(drafts), len(drafts))
        if done is None:
            assert [g.blocks for g in holder.table.groups] == before
            return
        self._copy(done.copies)
        for page in done.zeroed:
            self.memory[page, 0] = (holder.salt, ())
        holder.tokens = known
        self._write(holder, start, [*known[:end], *drafts])
        self._copy(done.snapshots)
        accepted = data.draw(st.integers(0, len(drafts)))
        holder.num_computed = end + accepted
        holder.tokens += drafts[:accepted]
        if accepted < len(drafts):
            left = self.allocator.truncate(holder.table, holder.num_computed)
            assert left == (start if self.geometry.has_states else holder.num_computed)
            holder.num_computed = left
        elif drafts:
            self.allocator.settle(holder.table)
        self.allocator.publish(holder.table, holder.tokens, holder.num_computed)
        self._check_content(holder)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), headroom=st.integers(0, 3))
    def fork(self, data: st.DataObject, headroom: int) -> None:
        parent = data.draw(st.sampled_from(self.running))
        num_shared = parent.table.fork_at
        if num_shared is None or parent.num_computed <= num_shared or not parent.table.num_forks:
            return
        tokens = parent.tokens[: num_shared + 1]
        child = BlockTable(root=root_hash(parent.salt))
        admission = self.allocator.fork(
            parent.table, child, num_shared, tokens, len(tokens) + 8, headroom
        )
        if isinstance(admission, Admitted):
            assert admission.num_cached_tokens <= num_shared
            holder = Holder(parent.salt, tokens, admission.num_cached_tokens, child)
            self._check_content(holder)
            self.running.append(holder)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), forget=st.sampled_from([False, False, True]))
    def release(self, data: st.DataObject, forget: bool) -> None:
        holder = data.draw(st.sampled_from(self.running))
        self.running.remove(holder)
        own = [
            block
            for mine, group in zip(holder.table.groups, self.geometry.groups, strict=True)
            if group.kind != "state"
            for block in mine.blocks[mine.first :]
        ]
        self.allocator.release(holder.table, forget=forget)
        assert not holder.table.groups
        if forget:
            assert not any(self.allocator.pool.is_cached(block) for block in own)

    @rule()
    def clear_cache(self) -> None:
        self.allocator.pool.clear_cache()

    def _write(self, holder: Holder, start: int, tokens: list[int]) -> None:
        for index, group in enumerate(self.geometry.groups):
            mine = holder.table.groups[index]
            if group.kind == "state":
                for page in mine.blocks:
                    found = self.memory[page, 0]
                    assert found == (holder.salt, tuple(tokens[:start])), "another state"
                    self.memory[page, 0] = (holder.salt, tuple(tokens))
                continue
            for position in range(start, len(tokens)):
                block, offset = mine.blocks[position // group.block_size], position
                others = [h for h in self.running if h is not holder and self._holds(h, block)]
                assert not others, "a block that others hold is written"
                content = (holder.salt, tuple(tokens[: position + 1]))
                self.memory[block, offset % group.block_size] = content

    def _holds(self, holder: Holder, block: int) -> bool:
        return any(block in mine.blocks[mine.first :] for mine in holder.table.groups)

    def _copy(self, copies: list[BlockCopy]) -> None:
        contents = [
            ((target, offset), self.memory.get((source, offset)))
            for source, target in copies
            for offset in range(self.geometry.page_bytes * 4)
        ]
        for place, content in contents:
            if content is None:
                self.memory.pop(place, None)
            else:
                self.memory[place] = content

    def _check_content(self, holder: Holder) -> None:
        """Whatever the next token sees is there, in every group."""
        for index, group in enumerate(self.geometry.groups):
            mine = holder.table.groups[index]
            if group.kind == "state":
                assert isinstance(mine, StateTable)
                pages = mine.source or mine.blocks
                for page in pages:
                    expected = (holder.salt, tuple(holder.tokens[: holder.num_computed]))
                    assert self.memory[page, 0] == expected
                continue
            end = holder.num_computed
            first = 0 if group.window is None else max(end - group.window + 1, 0)
            for position in range(first, end):
                block = mine.blocks[position // group.block_size]
                found = self.memory[block, position % group.block_size]
                assert found == (holder.salt, tuple(holder.tokens[: position + 1]))

    @invariant()
    def events_tell_what_is_findable(self) -> None:
        if not hasattr(self, "allocator"):
            return
        for event in self.allocator.take_events():
            if isinstance(event, BlocksRemoved):
                for key in event.keys:
                    del self.told[event.group, key]
                continue
            size, parent = event.block_size, event.parent
            assert len(event.token_ids) == size * len(event.keys)
            for index, key in enumerate(event.keys):
                assert (event.group, key) not in self.told, "told twice"
                if parent is not None:
                    chain: list[bytes] = []
                    tokens = event.token_ids[index * size : (index + 1) * size]
                    extend_chain(chain, parent, tokens, self.geometry.block_size)
                    assert chain[-1] == key
                self.told[event.group, key] = parent
                parent = key
        states = [i for i, group in enumerate(self.geometry.groups) if group.kind == "state"]
        findable = {(key[0], key[1:]) for key in self.allocator.pool._by_key}
        assert set(self.told) == {entry for entry in findable if entry[0] not in states}

    @invariant()
    def names_tell_where_to_go_on(self) -> None:
        """Of the group that lacks something first; a state needs all of its pages."""
        if not hasattr(self, "allocator"):
            return
        found, gone = self.allocator.take_names()
        self.names |= {*split(found)}
        self.names -= {*split(gone)}
        index = telling_group(self.geometry)
        pages = Counter(key[1:33] for key in self.allocator.pool._by_key if key[0] == index)
        needed = max(self.geometry.groups[index].pages_per_state, 1)
        assert self.names == {key[:NAME_BYTES] for key, num in pages.items() if num == needed}

    @invariant()
    def holds_together(self) -> None:
        if not hasattr(self, "allocator"):
            return
        self.allocator.check()
        held = set()
        for holder in self.running:
            self._check_content(holder)
            for mine in holder.table.groups:
                held |= set(mine.blocks[mine.first :])
                if isinstance(mine, StateTable):
                    held |= {*mine.source, *mine.saved, *mine.fork_state}
                    assert not mine.snapshots, "snapshots are published when they are computed"
        assert self.allocator.counts.in_use == len(held)

    def teardown(self) -> None:
        for holder in self.running:
            self.allocator.release(holder.table)
        self.allocator.check()
        assert self.allocator.counts.in_use == 0


TestPaged = PagedMachine.TestCase
TestPaged.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


def test_a_prefix_is_found_as_far_as_it_is_published() -> None:
    allocator = PagedAllocator(8, one_group(4), prefix_caching=True)
    first, second, third = BlockTable(), BlockTable(), BlockTable()
    tokens = list(range(13))
    assert allocator.admit(first, tokens, 16, 0) == Admitted(0)
    assert allocator.admit(second, tokens, 16, 0) is Refusal.PREFIX_PENDING
    allocator.extend(first, 0, 13)
    allocator.publish(first, tokens, 9)
    assert allocator.admit(second, tokens[:10], 16, 0) == Admitted(8)
    assert second.groups[0].blocks == first.groups[0].blocks[:2]
    assert allocator.admit(third, tokens, 16, 0) is Refusal.PREFIX_PENDING
    allocator.release(first)
    assert allocator.admit(third, tokens, 16, 0) == Admitted(8)


def test_without_prefix_caching_nothing_is_found() -> None:
    allocator = PagedAllocator(8, one_group(4), prefix_caching=False)
    first, second = BlockTable(), BlockTable()
    allocator.admit(first, list(range(8)), 8, 0)
    allocator.extend(first, 0, 8)
    allocator.publish(first, list(range(8)), 8)
    allocator.release(first)
    assert allocator.counts.cached == 0
    assert allocator.admit(second, list(range(8)), 8, 0) == Admitted(0)


def test_admission_leaves_headroom_and_counts_promises() -> None:
    allocator = PagedAllocator(8, one_group(4), prefix_caching=True)
    assert allocator.admit(BlockTable(), list(range(20)), 24, 0) == Admitted(0)
    assert allocator.counts.in_use == 0, "blocks are given just in time"
    other = list(range(100, 112))
    assert allocator.admit(BlockTable(), other, 16, 1) is Refusal.NO_MEMORY
    assert allocator.admit(BlockTable(), other, 16, 0) == Admitted(0)
    assert allocator.admit(BlockTable(), [7], 8, 0) is Refusal.NO_MEMORY


def test_behind_a_window_blocks_are_given_back_and_still_found() -> None:
    """A window of 8 in blocks of 4: at most the window, what is computed and one block are held."""
    geometry = CacheGeometry((group("window", 4, 8), group("full", 8)), 4, 4)
    allocator = PagedAllocator(60, geometry, prefix_caching=True, most_ahead=8)
    table, tokens = BlockTable(), list(range(80))
    assert allocator.admit(table, tokens, 90, 0) == Admitted(0)
    assert table.groups[0].num_promised == 5, "(8 + 8) / 4 and one more"
    assert table.groups[1].num_promised == 10
    for start in range(0, 80, 8):
        assert allocator.extend(table, start, start + 8) is not None
        assert table.groups[0].num_held <= 5
        allocator.publish(table, tokens, start + 8)
        assert table.groups[0].num_held == 2
    assert table.num_promised == 0
    allocator.release(table)
    # All of it is still there, and only the window's blocks are taken for a hit.
    again = BlockTable()
    assert allocator.admit(again, tokens, 90, 0) == Admitted(72)
    assert [mine.num_held for mine in again.groups] == [2, 9]
    half = BlockTable()
    assert allocator.admit(half, [*tokens[:45], 99], 90, 0) == Admitted(40)


def test_a_prefix_whose_window_was_evicted_is_shorter() -> None:
    geometry = CacheGeometry((group("window", 4, 8), group("full", 4)), 4, 4)
    allocator = PagedAllocator(64, geometry, prefix_caching=True)
    table, tokens = BlockTable(), list(range(33))
    allocator.admit(table, tokens, 40, 0)
    allocator.extend(table, 0, 33)
    allocator.publish(table, tokens, 33)
    window = allocator._tokens[0][1]
    evicted = allocator.pool.find(window.key(table.chain, 6))
    assert evicted is not None
    allocator.release(table)
    allocator.pool.share(evicted)
    allocator.pool.withdraw(evicted)
    allocator.pool.release(evicted)
    # Block 6 holds positions 24 to 27: prefixes of 28 and 32 need it, one of 24 does not.
    assert allocator.admit(BlockTable(), tokens, 40, 0) == Admitted(24)


def states(num_pages: int = 40) -> PagedAllocator:
    geometry = CacheGeometry((group("full", 4), group("state", pages=2)), 4, 4)
    return PagedAllocator(num_pages, geometry, prefix_caching=True)


def run(allocator: PagedAllocator, table: BlockTable, tokens: list[int], start: int) -> list[int]:
    """Compute all that is left, in as few rows as can be; where the rows end."""
    ends = []
    while start < len(tokens):
        end = allocator.row_end(table, start, len(tokens))
        assert allocator.extend(table, start, end) is not None
        allocator.publish(table, tokens, end)
        ends.append(end)
        start = end
    return ends


def test_a_state_is_kept_at_the_end_of_a_prompt_and_at_marks() -> None:
    allocator = states(200)
    first, tokens = BlockTable(marks=(20, 41)), list(range(82))
    assert allocator.admit(first, tokens, 90, 0) == Admitted(0)
    assert run(allocator, first, tokens, 0) == [40, 80, 82], "20 tokens are computed in no time"
    allocator.release(first)
    assert allocator.admit(BlockTable(), tokens, 90, 0) == Admitted(80)
    assert allocator.admit(BlockTable(), [*tokens[:54], 99], 90, 0) == Admitted(40)
    assert allocator.admit(BlockTable(), [*tokens[:39], 99], 90, 0) == Admitted(0)
    late = BlockTable(marks=(70,))
    others = [99, *tokens[1:]]
    assert allocator.admit(late, others, 90, 0) == Admitted(0)
    assert run(allocator, late, others, 0) == [68, 82], "one for the mark and the end"


def test_of_an_answer_the_newest_state_is_kept() -> None:
    allocator = states(80)
    table, tokens = BlockTable(), list(range(10))
    allocator.admit(table, tokens, 100, 0)
    run(allocator, table, tokens, 0)
    while len(tokens) < 74:
        tokens.append(len(tokens))
        run(allocator, table, tokens, len(tokens) - 1)
        if len(tokens) == 33:
            assert len(tables_states(table).published) == 2, "at 8, in the prompt, and at 32"
    assert [position for position, _ in tables_states(table).published] == [8, 64]
    allocator.release(table)
    allocator.check()
    assert allocator.admit(BlockTable(), [*tokens, 99], 100, 0) == Admitted(64)
    assert allocator.admit(BlockTable(), [*tokens[:50], 99], 100, 0) == Admitted(8)


def tables_states(table: BlockTable) -> StateTable:
    mine = table.groups[1]
    assert isinstance(mine, StateTable)
    return mine


def test_who_waits_has_the_state_kept_where_their_tokens_part() -> None:
    allocator = states(80)
    first, second, third = BlockTable(), BlockTable(), BlockTable()
    tokens = list(range(30))
    assert allocator.admit(first, tokens, 40, 0) == Admitted(0)
    allocator.extend(first, 0, 4)
    # They part at 14: the state is kept at 12, which both have.
    assert allocator.admit(second, [*tokens[:14], 99, 98], 40, 0) is Refusal.PREFIX_PENDING
    allocator.publish(first, tokens, 4)
    assert allocator.row_end(first, 4, 30) == 12
    assert allocator.extend(first, 4, 12) is not None
    assert allocator.admit(second, [*tokens[:14], 99, 98], 40, 0) is Refusal.PREFIX_PENDING
    # It is too late for this one: position 8 is being passed.
    assert allocator.admit(third, [*tokens[:9], 99, 98], 40, 0) == Admitted(0)
    allocator.publish(first, tokens, 12)
    assert allocator.admit(second, [*tokens[:14], 99, 98], 40, 0) == Admitted(12)
    assert run(allocator, first, tokens, 12) == [28, 30]


def test_siblings_start_from_the_state_before_the_last_token() -> None:
    allocator = states(80)
    parent, tokens = BlockTable(fork_at=9, num_forks=2), list(range(10))
    allocator.admit(parent, tokens, 20, 0)
    assert run(allocator, parent, tokens, 0) == [8, 9, 10]
    children = [BlockTable(), BlockTable()]
    for child in children:
        assert allocator.fork(parent, child, 9, tokens, 20, 0) == Admitted(9)
    assert not tables_states(parent).fork_state, "all are born"
    done = allocator.extend(children[0], 9, 10)
    assert done is not None
    assert len(done.copies) == 3, "a state of two pages, and the block that is half full"
    assert not done.zeroed


def test_headroom_is_left_for_those_who_run() -> None:
    """A quarter of them take a block soon: who is let in must not push them out."""
    allocator = PagedAllocator(8, one_group(4), prefix_caching=True)
    assert allocator.admit(BlockTable(), list(range(20)), 24, 0) == Admitted(0)
    assert allocator.admit(BlockTable(), [7] * 9, 16, 1) is Refusal.NO_MEMORY
    assert allocator.admit(BlockTable(), [7] * 8, 16, 1) == Admitted(0)
