"""What one sequence holds of the KV memory."""

from dataclasses import dataclass, field

from loire.base.step import TableUpdate


@dataclass(slots=True)
class GroupTable:
    """Blocks of one sequence in one cache group. Allocators write it, others read it.

    Attributes:
        blocks: ids by position (of a state: the pages of its slot); entries before first are void.
        first: leading blocks that are behind the group's window and held no more.
        num_published: leading blocks that were offered to the prefix cache.
        num_shared: leading blocks that it did not take itself: prefix hits, or those of a parent.
        num_promised: blocks that the known tokens will still need at a time; admission counts them.
        copies_tail: whether its last block is shared with a sibling, and half full: whichever of
            the two writes first copies it.
        num_told: leading blocks that execution knows as they are.
    """

    blocks: list[int] = field(default_factory=list)
    first: int = 0
    num_published: int = 0
    num_shared: int = 0
    num_promised: int = 0
    copies_tail: bool = False
    num_told: int = 0

    @property
    def num_held(self) -> int:
        """Blocks that it references."""
        return len(self.blocks) - self.first

    @property
    def num_own(self) -> int:
        """Blocks that it references and took itself."""
        return len(self.blocks) - max(self.first, self.num_shared)

    def clear(self) -> None:
        """It holds nothing."""
        self.blocks.clear()
        self.first = self.num_published = self.num_shared = self.num_told = 0
        self.num_promised = 0
        self.copies_tail = False


@dataclass(slots=True, eq=False)
class BlockTable:
    """All that one sequence holds.

    Attributes:
        root: start of the sequence's hash chain: what computes its KV, its salt and adapter.
        adapter: that, for events.
        is_private: whether the salt is a secret: events do not tell of its blocks.
        priority: of the sequence; none waits for a prefix that a less urgent one (a higher number)
            is computing.
        reads_cache: whether cached blocks may stand in for computing the prompt.
        marks: positions where its state is worth keeping, such as the ends of messages; it is kept
            where prefixes can be found, at or before them.
        fork_at: where siblings will start from its state; None if there are none.
        num_forks: siblings that are to come.
        groups: one per cache group; none while it is not admitted.
        chain: hashes of the finest full blocks of the known tokens, as far as they were needed.
        num_known: tokens it was admitted with.
        num_scheduled: leading tokens that are computed, or in steps in flight.
        num_disowned: leading entries of the chain that it need not compute any more.
        drafted_from: where its latest row with drafted tokens starts.
    """

    root: bytes = b""
    priority: int = 0
    reads_cache: bool = True
    marks: tuple[int, ...] = ()
    fork_at: int | None = None
    num_forks: int = 0
    adapter: str = ""
    is_private: bool = False
    groups: tuple[GroupTable, ...] = ()
    chain: list[bytes] = field(default_factory=list)
    num_known: int = 0
    num_scheduled: int = 0
    num_disowned: int = 0
    drafted_from: int = 0

    @property
    def num_own(self) -> int:
        """Pages that it holds and took itself."""
        return sum(group.num_own for group in self.groups)

    @property
    def num_promised(self) -> int:
        """Pages that admission counts for it, beside those it holds."""
        return sum(group.num_promised for group in self.groups)

    def news(self) -> tuple[TableUpdate, ...]:
        """What execution does not know yet of the blocks; it is told with this."""
        updates: tuple[TableUpdate, ...] = ()
        for index, group in enumerate(self.groups):
            first = group.num_told
            if first < len(group.blocks):
                group.num_told = len(group.blocks)
                updates += (TableUpdate(index, first, tuple(group.blocks[first:])),)
        return updates
