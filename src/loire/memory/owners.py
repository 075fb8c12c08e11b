"""Prefixes that a running sequence is about to compute, and whose they are.

Who needs one waits for its owner. Of layers that keep a state there is something to be had only
where the owner takes a snapshot; where a waiter's tokens part from the owner's, the owner is asked
for one.
"""

from collections.abc import Sequence

from loire.memory.block_table import BlockTable
from loire.memory.state_group import StateTable


class PrefixOwners:
    """by_mark: whether prefixes can be shared at snapshots only, not at every unit."""

    def __init__(self, finest: int, unit: int, *, by_mark: bool) -> None:
        self._finest = finest
        self._unit = unit
        self._by_mark = by_mark
        self._owners: dict[bytes, BlockTable] = {}
        """By the hash at a prefix's end; each entry of a chain that is yet to be computed."""
        self._marks: dict[bytes, BlockTable] = {}
        """Who will take a snapshot at a prefix's end."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody owns anything."""
        return not self._owners and not self._marks

    def is_pending(self, table: BlockTable, num_cached: int, most: int) -> bool:
        """Whether a sequence that is as urgent, or more so, is computing more of the table's first
        most tokens than the num_cached that can be had now."""
        last = most // self._unit * self._unit
        if last <= num_cached:
            return False
        if not self._by_mark:
            return self._urgent(self._owners, table, num_cached + self._unit) is not None
        for end in range(last, num_cached, -self._unit):
            if self._urgent(self._marks, table, end) is not None:
                return True
        for end in range(last, num_cached, -self._unit):
            owner = self._urgent(self._owners, table, end)
            if owner is not None:
                return self._ask(owner, table, end)
        return False

    def claim(self, table: BlockTable, num_cached: int, marks: Sequence[int]) -> None:
        """The sequence is about to compute its known tokens behind the cached ones."""
        for key in table.chain[num_cached // self._finest :]:
            owner = self._owners.get(key)
            if owner is None or owner.priority > table.priority:
                self._owners[key] = table
        for mark in marks:
            self._add_mark(table, mark)

    def disown(self, table: BlockTable, num_full: int) -> None:
        """The first num_full entries of its chain are computed."""
        for index in range(table.num_disowned, min(num_full, len(table.chain))):
            if self._owners.get(table.chain[index]) is table:
                del self._owners[table.chain[index]]
        table.num_disowned = num_full

    def reach(self, table: BlockTable, mark: int) -> None:
        """Its snapshot there has been taken, or will not be."""
        if mark // self._finest > len(table.chain):
            return  # in what it generated, where nobody waits for it
        key = self._key(table, mark)
        if self._marks.get(key) is table:
            del self._marks[key]

    def leave(self, table: BlockTable) -> None:
        """It computes nothing any more."""
        self.disown(table, len(table.chain))
        table.num_disowned = 0
        for group in table.groups:
            if isinstance(group, StateTable):
                for mark in (*group.marks, *(position for position, _ in group.snapshots)):
                    self.reach(table, mark)

    def _ask(self, owner: BlockTable, table: BlockTable, end: int) -> bool:
        """Ask for a snapshot at end, the last prefix that both have; False if it is too late."""
        if end <= owner.num_scheduled:
            return False
        for group in owner.groups:
            if isinstance(group, StateTable):
                group.marks = sorted({*group.marks, end})
        self._add_mark(owner, end)
        return True

    def _add_mark(self, table: BlockTable, mark: int) -> None:
        key = self._key(table, mark)
        owner = self._marks.get(key)
        if owner is None or owner.priority > table.priority:
            self._marks[key] = table

    def _urgent(
        self, owners: dict[bytes, BlockTable], table: BlockTable, end: int
    ) -> BlockTable | None:
        owner = owners.get(self._key(table, end))
        return owner if owner is not None and owner.priority <= table.priority else None

    def _key(self, table: BlockTable, end: int) -> bytes:
        return table.chain[end // self._finest - 1]
