"""What becomes findable in the prefix cache, and what no more: for those who route by it."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Blocks of one sequence, one behind the other, that can be found from now on.

    Attributes:
        group: index of the cache group.
        keys: the hash of each, which names all tokens up to its end.
        parent: the hash of the tokens before the first; None at the beginning of a sequence.
        token_ids: of all of them.
        block_size: tokens of each.
        window: of the group's layers, in tokens; None if they see all.
        adapter: of the sequence; others find none of its blocks.
    """

    group: int
    keys: tuple[bytes, ...]
    parent: bytes | None
    token_ids: tuple[int, ...]
    block_size: int
    window: int | None = None
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks of one cache group that can be found no more, by their hashes."""

    group: int
    keys: tuple[bytes, ...]


BlockEvent = BlocksStored | BlocksRemoved


class BlockEvents:
    """Collects events in their order until they are taken."""

    def __init__(self, groups: Collection[int]) -> None:
        """groups: those whose blocks are told of; snapshots of states are not."""
        self._groups = groups
        self._events: list[BlockEvent] = []

    def stored(self, event: BlocksStored) -> None:
        """Blocks were published."""
        self._events.append(event)

    def removed(self, pool_key: bytes) -> None:
        """A block was evicted, or its content is not to be trusted. pool_key: as the pool has it,
        the index of its group before its hash."""
        group, key = pool_key[0], pool_key[1:]
        if group not in self._groups:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, BlocksRemoved) and last.group == group:
            self._events[-1] = BlocksRemoved(group, (*last.keys, key))
        else:
            self._events.append(BlocksRemoved(group, (key,)))

    def take(self) -> list[BlockEvent]:
        """All since the last time."""
        events, self._events = self._events, []
        return events
