"""The pool of KV blocks: each is free, cached or in use, and the three always sum to the pool.

    free    holds nothing of value
    cached  holds the KV of a known prefix, referenced by nobody; in LRU order, evicted when needed
    in use  referenced by at least one sequence

A block with a key (the hash of the prefix that ends in it) can be found again by that key.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """How many blocks are in each state."""

    free: int
    cached: int
    in_use: int

    @property
    def available(self) -> int:
        """Blocks that can be taken now."""
        return self.free + self.cached


class BlockPool:
    """Ids 0 .. num_blocks - 1 with reference counts, keys and an LRU list."""

    def __init__(self, num_blocks: int, on_removed: Callable[[bytes], None] | None = None) -> None:
        """on_removed: told the key of a block that can be found no more."""
        if num_blocks < 1:
            raise ValueError(f"a pool needs at least 1 block, not {num_blocks}")
        self.num_blocks = num_blocks
        self.num_evictions = 0
        self._on_removed = on_removed
        self._refs = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def counts(self) -> BlockCounts:
        """Blocks by state."""
        free, cached = len(self._free), len(self._cached)
        return BlockCounts(free, cached, self.num_blocks - free - cached)

    @property
    def num_available(self) -> int:
        """Blocks that take() can give: free ones, and cached ones at the price of an eviction."""
        return len(self._free) + len(self._cached)

    def take(self) -> int:
        """A block for new content, with one reference; evicts the least recently used if need be.

        Raises IndexError if every block is in use: callers look at num_available first.
        """
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            self.num_evictions += 1
        else:
            raise IndexError(f"all {self.num_blocks} KV blocks are in use")
        self._refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a reference to a block that is cached or in use."""
        if self._refs[block] == 0:
            del self._cached[block]
        self._refs[block] += 1

    def release(self, block: int) -> None:
        """Drop a reference; at the last one the block becomes cached if it has a key, else free."""
        if self._refs[block] < 1:
            raise ValueError(f"block {block} is released but not in use")
        self._refs[block] -= 1
        if self._refs[block] == 0:
            if self._keys[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def publish(self, block: int, key: bytes) -> bool:
        """Make a block in use findable by key; False if another block has that key already."""
        if self._refs[block] < 1 or self._keys[block] is not None:
            raise ValueError(f"block {block} is not in use, or has a key already")
        if key in self._by_key:
            return False
        self._keys[block] = key
        self._by_key[key] = block
        return True

    def withdraw(self, block: int) -> None:
        """Make a block in use findable no more, if it was: its content is not to be trusted."""
        if self._refs[block] < 1:
            raise ValueError(f"block {block} is withdrawn but not in use")
        if self._keys[block] is not None:
            self._forget(block)

    def find(self, key: bytes) -> int | None:
        """The block with that key, cached or in use."""
        return self._by_key.get(key)

    def is_cached(self, block: int) -> bool:
        """Whether nobody references the block, but its content can be found."""
        return block in self._cached

    def is_exclusive(self, block: int) -> bool:
        """Whether its one holder may write into it: nobody else reads it or could find it."""
        return self._refs[block] == 1 and self._keys[block] is None

    def clear_cache(self) -> int:
        """Turn all cached blocks into free ones; returns how many."""
        dropped = len(self._cached)
        while self._cached:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            self._free.append(block)
        return dropped

    def check(self) -> None:
        """Integrity check; raises AssertionError at the first contradiction."""
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & cached, "a block is free and cached"
        in_use = {block for block, refs in enumerate(self._refs) if refs > 0}
        assert not in_use & (free | cached), "a block is in use and free or cached"
        assert len(in_use) + len(free) + len(cached) == self.num_blocks, "a block is lost"
        assert all(refs >= 0 for refs in self._refs), "a reference count is negative"
        assert all(self._keys[block] is None for block in free), "a free block has a key"
        assert all(self._keys[block] is not None for block in cached), "a cached block has no key"
        keyed = {key: block for block, key in enumerate(self._keys) if key is not None}
        assert keyed == self._by_key, "keys and blocks disagree"

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        assert key is not None
        del self._by_key[key]
        self._keys[block] = None
        if self._on_removed is not None:
            self._on_removed(key)
