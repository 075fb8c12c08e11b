"""The paged allocator under random operations, with a model of what each block holds."""

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loire.memory.allocator import Admission, BlockCopy, Refusal
from loire.memory.block_table import BlockTable
from loire.memory.hashing import root_hash
from loire.memory.paged import PagedAllocator

NUM_BLOCKS, BLOCK_SIZE = 12, 4
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=24)
SALTS = ("", "tenant")

Content = tuple[str, tuple[int, ...]]
"""(salt, tokens up to and including this position): what one position's KV depends on."""


@dataclass(eq=False)
class Holder:
    """A sequence: its tokens, how many are computed, and its table."""

    salt: str
    tokens: list[int]
    num_computed: int
    table: BlockTable


class PagedMachine(RuleBasedStateMachine):
    """Plays the scheduler's part: admit, extend, compute, publish, fork, release."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PagedAllocator(NUM_BLOCKS, BLOCK_SIZE, prefix_caching=True)
        self.running: list[Holder] = []
        self.memory: dict[tuple[int, int], Content] = {}

    @rule(
        tokens=TOKENS,
        salt=st.sampled_from(SALTS),
        reads_cache=st.booleans(),
        headroom=st.integers(0, 3),
    )
    def admit(self, tokens: list[int], salt: str, reads_cache: bool, headroom: int) -> None:
        table = BlockTable(root=root_hash(salt), reads_cache=reads_cache)
        before = self.allocator.counts
        admission = self.allocator.admit(table, tokens, len(tokens) + 8, headroom)
        if not isinstance(admission, Admission):
            assert self.allocator.counts == before
            assert not table.blocks
            if admission is Refusal.PREFIX_PENDING:
                assert reads_cache
                assert any(h.num_computed < len(h.tokens) for h in self.running)
            return
        cached = admission.num_cached_tokens
        assert cached < len(tokens), "the last token is left to compute"
        assert reads_cache or cached == 0
        holder = Holder(salt, list(tokens), cached, table)
        self._check_content(holder)
        self.running.append(holder)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), num_tokens=st.integers(1, 9))
    def compute(self, data: st.DataObject, num_tokens: int) -> None:
        """A chunk of the known tokens, or one more."""
        holder = data.draw(st.sampled_from(self.running))
        if holder.num_computed == len(holder.tokens):
            holder.tokens.append(data.draw(st.integers(0, 1)))
        end = min(holder.num_computed + num_tokens, len(holder.tokens))
        before = list(holder.table.blocks)
        copies = self.allocator.extend(holder.table, holder.num_computed, end)
        if copies is None:
            assert holder.table.blocks == before
            if holder.num_computed + 1 == len(holder.tokens):
                holder.tokens.pop()
            return
        self._copy(copies)
        for position in range(holder.num_computed, end):
            block = holder.table.blocks[position // BLOCK_SIZE]
            others = [h for h in self.running if h is not holder and block in h.table.blocks]
            assert not others, "a block that others hold is written"
            content = (holder.salt, tuple(holder.tokens[: position + 1]))
            self.memory[block, position % BLOCK_SIZE] = content
        holder.num_computed = end
        self._check_content(holder)
        self.allocator.publish(holder.table, holder.tokens, end)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), headroom=st.integers(0, 3))
    def fork(self, data: st.DataObject, headroom: int) -> None:
        parent = data.draw(st.sampled_from(self.running))
        if parent.num_computed < len(parent.tokens) or len(parent.tokens) < 2:
            return
        num_shared = len(parent.tokens) - 1
        child = BlockTable(root=root_hash(parent.salt))
        admission = self.allocator.fork(
            parent.table, child, num_shared, parent.tokens, len(parent.tokens) + 8, headroom
        )
        if isinstance(admission, Admission):
            assert admission.num_cached_tokens == num_shared
            holder = Holder(parent.salt, list(parent.tokens), num_shared, child)
            self._check_content(holder)
            self.running.append(holder)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), forget=st.sampled_from([False, False, True]))
    def release(self, data: st.DataObject, forget: bool) -> None:
        holder = data.draw(st.sampled_from(self.running))
        self.running.remove(holder)
        own = list(holder.table.blocks)
        self.allocator.release(holder.table, forget=forget)
        assert not holder.table.blocks
        if forget:
            assert not any(self.allocator.pool.is_cached(block) for block in own)

    @rule()
    def clear_cache(self) -> None:
        self.allocator.pool.clear_cache()

    def _copy(self, copies: list[BlockCopy]) -> None:
        for source, target in copies:
            for offset in range(BLOCK_SIZE):
                if (source, offset) in self.memory:
                    self.memory[target, offset] = self.memory[source, offset]

    def _check_content(self, holder: Holder) -> None:
        for position in range(holder.num_computed):
            block = holder.table.blocks[position // BLOCK_SIZE]
            found = self.memory[block, position % BLOCK_SIZE]
            assert found == (holder.salt, tuple(holder.tokens[: position + 1]))

    @invariant()
    def holds_together(self) -> None:
        self.allocator.check()
        for holder in self.running:
            self._check_content(holder)
        held = {block for holder in self.running for block in holder.table.blocks}
        assert self.allocator.counts.in_use == len(held)

    def teardown(self) -> None:
        for holder in self.running:
            self.allocator.release(holder.table)
        self.allocator.check()
        assert self.allocator.counts.in_use == 0


TestPaged = PagedMachine.TestCase
TestPaged.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


def test_a_prefix_is_found_as_far_as_it_is_published() -> None:
    allocator = PagedAllocator(8, 4, prefix_caching=True)
    first, second, third = BlockTable(), BlockTable(), BlockTable()
    tokens = list(range(13))
    assert allocator.admit(first, tokens, 16, 0) == Admission(0)
    assert allocator.admit(second, tokens, 16, 0) is Refusal.PREFIX_PENDING
    allocator.extend(first, 0, 13)
    allocator.publish(first, tokens, 9)
    assert allocator.admit(second, tokens[:10], 16, 0) == Admission(8)
    assert second.blocks == first.blocks[:2]
    assert allocator.admit(third, tokens, 16, 0) is Refusal.PREFIX_PENDING
    allocator.release(first)
    assert allocator.admit(third, tokens, 16, 0) == Admission(8)


def test_without_prefix_caching_nothing_is_found() -> None:
    allocator = PagedAllocator(8, 4, prefix_caching=False)
    first, second = BlockTable(), BlockTable()
    allocator.admit(first, list(range(8)), 8, 0)
    allocator.extend(first, 0, 8)
    allocator.publish(first, list(range(8)), 8)
    allocator.release(first)
    assert allocator.counts.cached == 0
    assert allocator.admit(second, list(range(8)), 8, 0) == Admission(0)


def test_admission_leaves_headroom_and_counts_promises() -> None:
    allocator = PagedAllocator(8, 4, prefix_caching=True)
    assert allocator.admit(BlockTable(), list(range(20)), 24, 0) == Admission(0)
    assert allocator.counts.in_use == 0, "blocks are given just in time"
    other = list(range(100, 112))
    assert allocator.admit(BlockTable(), other, 16, 1) is Refusal.NO_MEMORY
    assert allocator.admit(BlockTable(), other, 16, 0) == Admission(0)
    assert allocator.admit(BlockTable(), [7], 8, 0) is Refusal.NO_MEMORY
