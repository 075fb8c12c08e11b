"""What one sequence holds of the KV memory."""

from dataclasses import dataclass, field

from loire.base.step import TableUpdate


@dataclass(slots=True)
class BlockTable:
    """Blocks of one sequence, in order of position. Allocators write it, others read it.

    Attributes:
        root: start of the sequence's hash chain: its salt and adapter.
        priority: of the sequence; none waits for a prefix that a less urgent one (a higher number)
            is computing.
        reads_cache: whether cached blocks may stand in for computing the prompt.
        blocks: ids of the blocks held.
        chain: hashes of the full blocks of the known tokens, as far as they were needed.
        num_published: leading blocks that were offered to the prefix cache.
        num_shared: leading blocks that it did not take itself: prefix hits, or those of a parent.
        num_promised: blocks that the known tokens will need in the end; admission counts them.
        num_told: leading blocks that execution knows as they are.
    """

    root: bytes = b""
    priority: int = 0
    reads_cache: bool = True
    blocks: list[int] = field(default_factory=list)
    chain: list[bytes] = field(default_factory=list)
    num_published: int = 0
    num_shared: int = 0
    num_promised: int = 0
    num_told: int = 0

    def news(self) -> tuple[TableUpdate, ...]:
        """What execution does not know yet of the blocks; it is told with this."""
        first = self.num_told
        if first == len(self.blocks):
            return ()
        self.num_told = len(self.blocks)
        return (TableUpdate(0, first, tuple(self.blocks[first:])),)
