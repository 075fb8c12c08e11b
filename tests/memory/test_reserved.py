"""The reserved allocator under random operations, against a map of who holds which block."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from loire.base.cache_geometry import one_group
from loire.base.config import Reserve
from loire.memory.allocator import Admitted, PageOperations, Refusal
from loire.memory.block_table import BlockTable
from loire.memory.reserved import ReservedAllocator

NUM_BLOCKS, BLOCK_SIZE, WINDOW = 16, 4, 22


def free_runs(held: set[int]) -> list[tuple[int, int]]:
    """(first block, blocks) of each run that nobody holds, counted block by block."""
    runs: list[tuple[int, int]] = []
    for block in range(NUM_BLOCKS):
        if block in held:
            continue
        if runs and sum(runs[-1]) == block:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((block, 1))
    return runs


def blocks(table: BlockTable) -> list[int]:
    return [block for group in table.groups for block in group.blocks]


class ReservedMachine(RuleBasedStateMachine):
    """Plays the scheduler's part: admit, extend, fork, release."""

    reserve: Reserve

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[BlockTable, int]] = []
        """With what each may become, in tokens."""

    @initialize(reserve=st.sampled_from(["max-tokens", "window"]))
    def start(self, reserve: Reserve) -> None:
        self.reserve = reserve
        self.allocator = ReservedAllocator(
            NUM_BLOCKS, one_group(BLOCK_SIZE), reserve=reserve, max_model_len=WINDOW
        )

    @property
    def held(self) -> set[int]:
        return {block for table, _ in self.tables for block in blocks(table)}

    @rule(num_prompt=st.integers(1, 12), num_output=st.integers(0, 10), headroom=st.integers(0, 20))
    def admit(self, num_prompt: int, num_output: int, headroom: int) -> None:
        self._admit(BlockTable(), num_prompt, num_prompt + num_output, headroom)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), headroom=st.integers(0, 20))
    def fork(self, data: st.DataObject, headroom: int) -> None:
        parent, most = data.draw(st.sampled_from(self.tables))
        self._admit(BlockTable(), most, most, headroom, parent)

    def _admit(
        self,
        table: BlockTable,
        num_prompt: int,
        most: int,
        headroom: int,
        parent: BlockTable | None = None,
    ) -> None:
        needed = -(-(WINDOW if self.reserve == "window" else most) // BLOCK_SIZE)
        before = self.allocator.counts
        fitting = [first for first, length in free_runs(self.held) if length >= needed]
        tokens = range(num_prompt)
        answer = (
            self.allocator.admit(table, tokens, most, headroom)
            if parent is None
            else self.allocator.fork(parent, table, num_prompt - 1, tokens, most, headroom)
        )
        if not fitting:
            assert answer is Refusal.NO_MEMORY
            assert self.allocator.counts == before
            assert not table.groups
            return
        assert answer == Admitted(0), "nothing is shared, nothing is found"
        assert blocks(table) == list(range(fitting[0], fitting[0] + needed)), "first fit"
        self.tables.append((table, most))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        """Whatever was declared at admission is writable, and costs nothing more."""
        table, most = data.draw(st.sampled_from(self.tables))
        before = list(blocks(table))
        assert self.allocator.extend(table, most - 1, most) == PageOperations()
        assert blocks(table) == before

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), forget=st.booleans())
    def release(self, data: st.DataObject, forget: bool) -> None:
        entry = data.draw(st.sampled_from(self.tables))
        self.tables = [other for other in self.tables if other is not entry]
        self.allocator.release(entry[0], forget=forget)
        assert not entry[0].groups
        self.allocator.release(entry[0])  # nothing is left to give back

    @invariant()
    def accounts_sum_up(self) -> None:
        self.allocator.check()
        counts, held = self.allocator.counts, self.held
        assert counts.in_use == len(held)
        assert len(held) == sum(len(blocks(table)) for table, _ in self.tables), "a block twice"
        assert (counts.free, counts.cached) == (NUM_BLOCKS - len(held), 0)
        runs = free_runs(held)
        assert self.allocator.largest_free_run == max((length for _, length in runs), default=0)

    def teardown(self) -> None:
        for table, _ in self.tables:
            self.allocator.release(table)
        self.allocator.check()
        assert self.allocator.largest_free_run == NUM_BLOCKS


TestReserved = ReservedMachine.TestCase
TestReserved.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_external_fragmentation() -> None:
    """Eight blocks are free, and yet nobody gets five."""
    allocator = ReservedAllocator(16, one_group(4), reserve="max-tokens", max_model_len=64)
    tables = [BlockTable() for _ in range(4)]
    for table in tables:
        assert allocator.admit(table, [1], 16, 0) == Admitted(0)
    allocator.release(tables[0])
    allocator.release(tables[2])
    assert allocator.counts.free == 8
    assert allocator.largest_free_run == 4
    assert allocator.admit(BlockTable(), [1], 17, 0) is Refusal.NO_MEMORY
    allocator.release(tables[1])
    assert allocator.largest_free_run == 12
    assert allocator.admit(BlockTable(), [1], 17, 0) == Admitted(0)


def test_a_sequence_cannot_outgrow_its_reservation() -> None:
    allocator = ReservedAllocator(16, one_group(4), reserve="max-tokens", max_model_len=64)
    table = BlockTable()
    allocator.admit(table, [1, 2], 6, 0)
    assert allocator.extend(table, 0, 8) == PageOperations()
    with pytest.raises(AssertionError, match="outgrew"):
        allocator.extend(table, 8, 9)
