"""States instead of tokens: what a sequence holds in a group of recurrent layers.

A sequence has a slot, some whole pages, and every step overwrites what is in it. Copies of it
(snapshots) are kept where others may go on from: they can be found like blocks of tokens, by the
hash of all tokens before. A row of a step ends where a snapshot is to be taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from loire.base.cache_geometry import CacheGroup
from loire.memory.allocator import BlockCopy, PageOperations
from loire.memory.block_pool import BlockPool
from loire.memory.block_table import BlockTable, GroupTable

LEAST_APART = 32
"""Tokens between states that are kept, if nobody waits for one. While new tokens are generated that
is a thirtieth of what their steps read and write of the state."""


@dataclass(slots=True)
class StateTable(GroupTable):
    """GroupTable of a state: blocks are the slot's pages.

    Attributes:
        source: pages that are copied into the slot before its next step, referenced until then.
        saved: the state from before a step with drafted tokens, until its result is known.
        marks: positions where a snapshot is to be taken, ascending.
        snapshots: (position, pages) of those that are being computed.
        published: (position, pages) of those that were offered to the prefix cache.
        newest: the one among them that lies behind the tokens it was admitted with, if there is.
        fork_state: pages from which siblings start.
    """

    source: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    snapshots: list[tuple[int, list[int]]] = field(default_factory=list)
    published: list[tuple[int, list[int]]] = field(default_factory=list)
    newest: tuple[int, list[int]] | None = None
    fork_state: list[int] = field(default_factory=list)

    @property
    def num_own(self) -> int:
        """Pages that it references and took itself; those of a source are others'."""
        copies = len(self.saved) + sum(len(pages) for _, pages in self.snapshots)
        return len(self.blocks) + copies


class StateGroup:
    """One cache group's part of the allocator's work; the pool is all groups'."""

    def __init__(self, index: int, group: CacheGroup, pool: BlockPool, finest: int) -> None:
        """finest: tokens per entry of the hash chain."""
        self.num_pages = group.pages_per_state
        self._pool = pool
        self._prefix = bytes([index])
        self._finest = finest

    def find(self, chain: Sequence[bytes], num_tokens: int) -> list[int] | None:
        """The pages of a snapshot after so many tokens, if it is there."""
        pages = [self._pool.find(key) for key in self._keys(chain, num_tokens)]
        found = [page for page in pages if page is not None]
        return found if len(found) == self.num_pages else None

    def longest_prefix(self, chain: Sequence[bytes], most: int, unit: int) -> int:
        """Tokens, a multiple of unit and at most most, after which there is a snapshot."""
        for num_tokens in range(most // unit * unit, 0, -unit):
            if self.find(chain, num_tokens) is not None:
                return num_tokens
        return 0

    def enter(self, table: StateTable, source: Sequence[int], marks: Sequence[int]) -> None:
        """Start from the state in these pages (none: from nothing), and keep it at marks."""
        for page in source:
            self._pool.share(page)
        table.source = list(source)
        table.marks = sorted(set(marks))

    def num_missing(self, table: StateTable, num_drafts: int) -> int:
        """Pages to be taken before the next step."""
        slot = 0 if table.blocks else self.num_pages
        return slot + (self.num_pages if num_drafts else 0)

    def begin(
        self,
        table: StateTable,
        operations: PageOperations,
        start: int,
        num_drafts: int,
        fork_at: int | None,
    ) -> None:
        """Prepare the slot for a step from position start on."""
        is_new, is_empty = not table.blocks, not table.blocks and not table.source
        if is_new:
            table.blocks = self._take()
        origin = list(table.source or table.blocks)
        if table.source:
            if is_new and fork_at == start:
                table.fork_state = list(table.source)
                for page in table.source:
                    self._pool.share(page)
            operations.copies += zip(table.source, table.blocks, strict=True)
            # Copies are read before anything is written in this step, so the source may go.
            self._release(table.source)
        elif is_empty:
            operations.zeroed += table.blocks
        if num_drafts:
            table.saved = self._take()
            if is_empty:
                operations.zeroed += table.saved
            else:
                operations.copies += zip(origin, table.saved, strict=True)

    def take_snapshot(self, table: StateTable, end: int, fork_at: int | None) -> list[BlockCopy]:
        """Copies to be made after a step that ends at position end."""
        pages = self._take()
        if end == fork_at:
            table.fork_state = list(pages)
            if end not in table.marks:
                return list(zip(table.blocks, pages, strict=True))
            for page in pages:
                self._pool.share(page)
        table.snapshots.append((end, pages))
        return list(zip(table.blocks, pages, strict=True))

    def publish(
        self, table: StateTable, chain: Sequence[bytes], num_computed: int, num_known: int
    ) -> list[int]:
        """Let others find the snapshots that are computed; their positions.

        Of those behind the num_known tokens it was admitted with only the last is worth its memory.
        """
        done = [entry for entry in table.snapshots if entry[0] <= num_computed]
        for entry in done:
            table.snapshots.remove(entry)
            for page, key in zip(entry[1], self._keys(chain, entry[0]), strict=True):
                self._pool.publish(page, key)
                self._pool.release(page)
            if entry[0] > num_known:
                if table.newest is not None:
                    self._withdraw(table.newest, chain)
                    table.published.remove(table.newest)
                table.newest = entry
            table.published.append(entry)
        return [position for position, _ in done]

    def settle(self, table: StateTable, *, restore: bool) -> None:
        """The step with drafted tokens is over; restore: the next one starts where it did."""
        if restore:
            assert table.saved, "drafted tokens were computed into a state that was not saved"
            table.source = list(table.saved)
            table.saved.clear()
        else:
            self._release(table.saved)

    def fork(self, parent: StateTable, child: StateTable, num_tokens: int) -> None:
        """The child starts from the parent's state of the time before the prompt's last token."""
        self.enter(child, parent.fork_state if num_tokens else (), ())

    def drop_fork_state(self, table: StateTable) -> None:
        """No sibling is left to come."""
        self._release(table.fork_state)

    def release(self, table: StateTable, chain: Sequence[bytes]) -> None:
        """Give everything back; snapshots stay findable, as recently used as the tokens' blocks."""
        for position, pages in table.published:
            keys = self._keys(chain, position)
            for page, key in zip(pages, keys, strict=True):
                if self._pool.find(key) == page:
                    self._pool.share(page)
                    self._pool.release(page)
        for _, pages in table.snapshots:
            self._release(pages)
        for pages in (table.source, table.saved, table.fork_state, table.blocks):
            self._release(pages)
        table.snapshots.clear()
        table.published.clear()
        table.newest = None
        table.marks.clear()

    def forget(self, table: StateTable, chain: Sequence[bytes]) -> None:
        """What it offered to the prefix cache is not to be trusted."""
        for entry in table.published:
            self._withdraw(entry, chain)
        table.published.clear()
        table.newest = None

    def _withdraw(self, snapshot: tuple[int, list[int]], chain: Sequence[bytes]) -> None:
        """Nobody may find it any more."""
        position, pages = snapshot
        for page, key in zip(pages, self._keys(chain, position), strict=True):
            if self._pool.find(key) == page:
                self._pool.share(page)
                self._pool.withdraw(page)
                self._pool.release(page)

    def _keys(self, chain: Sequence[bytes], num_tokens: int) -> list[bytes]:
        end = chain[num_tokens // self._finest - 1]
        return [self._prefix + end + page.to_bytes(2, "little") for page in range(self.num_pages)]

    def _take(self) -> list[int]:
        return [self._pool.take() for _ in range(self.num_pages)]

    def _release(self, pages: list[int]) -> None:
        for page in pages:
            self._pool.release(page)
        pages.clear()


def state_marks(table: BlockTable, num_tokens: int, num_cached: int, unit: int) -> list[int]:
    """Where a sequence of num_tokens known tokens keeps its state, behind num_cached of them.

    Before the last token, and at marks that are worth it. Each costs a step of its own, so one that
    is near the end stands for both.
    """
    last = num_tokens - 1
    wanted = [mark for mark in table.marks if mark >= num_cached + LEAST_APART]
    if not any(last - LEAST_APART < mark <= last for mark in wanted):
        wanted.append(last)
    aligned = {min(mark, last) // unit * unit for mark in wanted}
    return sorted(mark for mark in aligned if mark > num_cached)
