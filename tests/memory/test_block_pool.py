"""The pool against a model of it: states, references, keys, and the order of eviction."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loire.memory.block_pool import BlockPool

KEYS = [bytes([number]) for number in range(12)]


class PoolMachine(RuleBasedStateMachine):
    """Random operations; the model is a dictionary and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(7)
        self.refs: dict[int, int] = {}
        self.keys: dict[int, bytes] = {}
        self.cached: list[int] = []  # the least recently used first

    @precondition(lambda self: self.pool.num_available > 0)
    @rule()
    def take(self) -> None:
        num_free, evictions = self.pool.counts.free, self.pool.num_evictions
        block = self.pool.take()
        assert block not in self.refs
        if num_free:
            assert block not in self.cached
        else:
            assert block == self.cached.pop(0), "not the least recently used"
            del self.keys[block]
        assert self.pool.num_evictions == evictions + (not num_free)
        self.refs[block] = 1

    @precondition(lambda self: self.pool.num_available == 0)
    @rule()
    def take_from_nothing(self) -> None:
        with pytest.raises(IndexError, match="all 7 KV blocks are in use"):
            self.pool.take()

    @precondition(lambda self: self.refs or self.cached)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from([*self.refs, *self.cached]))
        self.pool.share(block)
        if block in self.cached:
            self.cached.remove(block)
        self.refs[block] = self.refs.get(block, 0) + 1

    @precondition(lambda self: self.refs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(list(self.refs)))
        self.pool.release(block)
        self.refs[block] -= 1
        if not self.refs[block]:
            del self.refs[block]
            if block in self.keys:
                self.cached.append(block)

    @rule(data=st.data())
    def release_what_is_not_in_use(self, data: st.DataObject) -> None:
        others = [block for block in range(7) if block not in self.refs]
        if others:
            with pytest.raises(ValueError, match="released but not in use"):
                self.pool.release(data.draw(st.sampled_from(others)))

    @precondition(lambda self: any(block not in self.keys for block in self.refs))
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        block = data.draw(st.sampled_from([b for b in self.refs if b not in self.keys]))
        assert self.pool.publish(block, key) == (key not in self.keys.values())
        if key not in self.keys.values():
            self.keys[block] = key

    @precondition(lambda self: self.refs)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(list(self.refs)))
        self.pool.withdraw(block)
        self.keys.pop(block, None)

    @rule()
    def clear_cache(self) -> None:
        assert self.pool.clear_cache() == len(self.cached)
        for block in self.cached:
            del self.keys[block]
        self.cached.clear()

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.pool.check()
        counts = self.pool.counts
        assert (counts.in_use, counts.cached) == (len(self.refs), len(self.cached))
        assert counts.free + counts.cached + counts.in_use == 7
        found = {key: self.pool.find(key) for key in KEYS}
        assert {b: k for k, b in found.items() if b is not None} == self.keys
        for block in range(7):
            assert self.pool.is_cached(block) == (block in self.cached)
            exclusive = self.refs.get(block) == 1 and block not in self.keys
            assert self.pool.is_exclusive(block) == exclusive


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 block, not 0"):
        BlockPool(0)
