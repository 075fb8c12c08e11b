"""Placement: work is counted exactly, prefixes are found, nobody is sent where nobody is."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from loire.base.cache_geometry import one_group
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.engine.core import EngineCore
from loire.fleet.placement import Placement, PrefixChains, Replica, num_tokens_to_compute
from loire.scheduling.presets import build_scheduler
from support.fake_execution import FakeExecutor
from support.fake_replica import config

SIZE = 4
NOTHING = PrefixChains(EngineRequest("-", (1,), SamplingParams(), 0))
"""Of a request without a full block."""


def replica(name: str, num_blocks: int = 64, size: int = SIZE, numbers: str = "") -> Replica:
    return Replica(name, num_blocks, size, numbers)


def request(
    name: str,
    prompt: tuple[int, ...],
    *,
    salt: str = "",
    adapter: str = "",
    outputs: tuple[tuple[int, ...], ...] = (),
) -> EngineRequest:
    params = SamplingParams(max_tokens=8, n=max(len(outputs), 1))
    return EngineRequest(
        name, prompt, params, 0, cache_salt=salt, adapter=adapter, output_token_ids=outputs
    )


def place(placement: Placement, message: EngineRequest, avoid: tuple[str, ...] = ()) -> str | None:
    tokens = num_tokens_to_compute(message)
    return placement.place(message.request_id, PrefixChains(message), tokens, avoid=avoid)


def fleet(*names: str, **options: float) -> Placement:
    placement = Placement(**options)
    for name in names:
        placement.join(replica(name))
    return placement


def test_where_states_are_kept_the_last_of_them_counts() -> None:
    placement = fleet("x")
    placement.join(replace(replica("y"), is_sparse=True))
    message = request("a", tuple(range(17)))
    chains = PrefixChains(message)
    keys = chains.keys(replica("y"))
    for name in "xy":
        placement.changed(name, [keys[1]], [])
    assert placement.matched_tokens("x", chains) == 0, "the first block is missing"
    assert placement.matched_tokens("y", chains) == 2 * SIZE
    placement.changed("y", [], [keys[1]])
    assert placement.matched_tokens("y", chains) == 0


def test_adapters_stay_where_they_are_in_memory_until_others_have_less_to_do() -> None:
    placement = fleet("x", "y")
    assert place(placement, request("a", (1, 2), adapter="style")) is None
    placement.adapter_usable("y", "style")
    assert place(placement, request("a", (1, 2), adapter="style")) == "y"
    placement.adapter_usable("x", "style")
    names = [place(placement, request(f"r{i}", (1, 2), adapter="style")) for i in range(30)]
    # 2,000 tokens for reading the weights outweigh some twenty requests.
    assert names[:19] == ["y"] * 19
    assert "x" in names
    assert placement.place("plain", NOTHING, 2) == "x"
    for index in range(30):
        placement.end(f"r{index}")
    placement.adapters_in_memory("y", 0)  # "a" still needs it there
    placement.adapters_in_memory("x", 0)
    assert place(placement, request("b", (1, 2), adapter="style")) == "y"
    placement.end("a")
    placement.end("b")
    placement.adapters_in_memory("y", 0)
    placement.adapter_usable("z", "style")  # of a replica that is gone
    placement.adapters_in_memory("z", 0)
    assert place(placement, request("c", (1, 2), adapter="style")) == "y", "x has another request"


def test_nobody_there_means_wait() -> None:
    placement = Placement()
    assert placement.place("a", NOTHING, 10) is None
    placement.join(replica("x"))
    assert placement.place("a", NOTHING, 10) == "x"


def test_the_one_with_the_prefix_is_chosen_until_it_has_too_much_to_do() -> None:
    placement = fleet("x", "y")
    prompt = tuple(range(40))
    first = place(placement, request("0", prompt))
    assert first is not None
    placement.first_token("0", 0)
    placement.end("0")
    assert placement.matched_tokens(first, PrefixChains(request("1", prompt))) == 36
    other = "y" if first == "x" else "x"
    chosen = [place(placement, request(str(i), prompt)) for i in range(1, 5)]
    # Each that waits there stands for 104 tokens; anew it would cost 4 * 36 more elsewhere.
    assert chosen[:2] == [first, first]
    assert other in chosen


@pytest.mark.parametrize("second", [{"salt": "s"}, {"adapter": "a"}])
def test_salts_and_adapters_share_nothing(second: dict[str, str]) -> None:
    placement = fleet("x")
    prompt = tuple(range(40))
    place(placement, request("0", prompt))
    assert placement.matched_tokens("x", PrefixChains(request("1", prompt))) == 36
    assert placement.matched_tokens("x", PrefixChains(request("1", prompt, **second))) == 0


def test_equal_numbers_are_preferred_and_avoided_ones_are_the_last_resort() -> None:
    placement = Placement()
    placement.join(replica("a", numbers="bf16"))
    placement.join(replica("b", numbers="f32"))
    for index in range(20):
        assert placement.place(f"{index}", NOTHING, 100, numbers="f32") == "b"
    assert placement.place("x", NOTHING, 1, numbers="f32", avoid=("b",)) == "a"
    assert placement.place("y", NOTHING, 1, numbers="int8", avoid=("a",)) == "b"
    assert placement.place("z", NOTHING, 1, avoid=("a", "b")) in ("a", "b")


def test_fewer_cached_than_expected_makes_the_cache_smaller() -> None:
    placement = fleet("x")
    old, new = tuple(range(100, 140)), tuple(range(40))
    place(placement, request("old", old))
    place(placement, request("0", new))
    placement.first_token("old", 0)
    placement.first_token("0", 0)
    place(placement, request("1", new))
    placement.first_token("1", 12)  # 24 of 36 tokens were gone
    assert placement.matched_tokens("x", PrefixChains(request("a", old))) == 12
    assert placement.matched_tokens("x", PrefixChains(request("b", new))) == 36


def test_what_never_ran_is_not_cached() -> None:
    placement = fleet("x")
    prompt = tuple(range(40))
    place(placement, request("0", prompt[:21]))
    placement.first_token("0", 0)
    place(placement, request("1", prompt))
    placement.end("1")
    assert placement.matched_tokens("x", PrefixChains(request("2", prompt))) == 20


def test_replicas_tell_what_they_hold() -> None:
    placement = fleet("x", "y")
    chains = PrefixChains(request("0", tuple(range(41))))
    chain = chains.hashes(replica("y"))
    placement.changed("y", chain, ())
    assert placement.matched_tokens("y", chains) == 40
    assert place(placement, request("0", tuple(range(41)))) == "y"
    placement.changed("y", (), chain[3:])
    assert placement.matched_tokens("y", chains) == 12
    placement.changed("gone", chain, chain)
    assert placement.matched_tokens("x", chains) == 0


def test_no_more_is_remembered_than_the_pool_holds() -> None:
    placement = Placement()
    placement.join(replica("x", num_blocks=5))
    chains = PrefixChains(request("0", tuple(range(41))))
    place(placement, request("0", tuple(range(41))))
    # Of a chain too long for the pool its head is worth most.
    assert placement.matched_tokens("x", chains) == 20


@pytest.mark.parametrize("odd", [Replica("odd", 64, 8), Replica("odd", 64, SIZE, "", "int8")])
def test_each_replica_is_asked_for_its_own_blocks(odd: Replica) -> None:
    placement = Placement()
    placement.join(replica("x"))
    placement.join(odd)
    prompt = tuple(range(41))
    place(placement, request("0", prompt), avoid=("x",))
    placement.first_token("0", 0)
    chains = PrefixChains(request("1", prompt))
    assert placement.matched_tokens("odd", chains) == 40
    assert placement.matched_tokens("x", chains) == 0
    assert set(chains.keys(odd)).isdisjoint(chains.keys(replica("x")))
    assert place(placement, request("1", prompt)) == "odd"


def test_chains_are_those_of_the_engine() -> None:
    """What a replica publishes is found by the hashes that placement makes of the request."""
    engine = replace(config(), computed_by="a model, float32, these kernels")
    executor = FakeExecutor(engine.num_blocks, one_group(engine.block_size))
    core = EngineCore(build_scheduler(engine), executor)
    message = request("0", tuple(range(20, 61)), salt="s", adapter="a")
    core.add(message)
    while core.has_work:
        core.step()
    pool = core.scheduler.allocator.pool  # type: ignore[attr-defined]
    published = {key[1:] for key in pool._by_key}

    def found(computed_by: str) -> set[bytes]:
        asked = Replica("x", engine.num_blocks, engine.block_size, computed_by=computed_by)
        return set(PrefixChains(message).hashes(asked)) & published

    assert len(found(engine.computed_by)) == 10
    assert not found("")


def test_a_resumed_request_counts_what_it_brings() -> None:
    fresh = request("0", tuple(range(8)))
    resumed = request("0", tuple(range(8)), outputs=((20, 21, 22, 23), (30,)))
    assert num_tokens_to_compute(fresh) == 8
    assert num_tokens_to_compute(resumed) == 13
    # The last token is always computed.
    assert len(PrefixChains(fresh).hashes(replica("x"))) == 1
    assert len(PrefixChains(resumed).hashes(replica("x"))) == 2


def test_names_and_ids_are_unique() -> None:
    placement = fleet("x")
    with pytest.raises(ValueError, match="there already"):
        placement.join(replica("x"))
    place(placement, request("0", (1, 2)))
    with pytest.raises(ValueError, match="placed already"):
        place(placement, request("0", (1, 2)))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    prompts=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    num_replicas=st.integers(2, 6),
)
def test_prompts_that_share_nothing_are_spread(prompts: list[int], num_replicas: int) -> None:
    """No replica's work exceeds another's by more than the request that made it so."""
    placement = fleet(*map(str, range(num_replicas)))
    for index, length in enumerate(prompts):
        place(placement, request(f"r{index}", tuple(range(index * 1000, index * 1000 + length))))
    work = [
        placement.outstanding(r.name) + 100 * len(placement.requests(r.name))
        for r in placement.replicas
    ]
    assert max(work) - min(work) <= max(prompts) + 100


@dataclass
class Known:
    """What the model knows of a request."""

    where: str


class Fleet(RuleBasedStateMachine):
    """Replicas come and go, requests are placed, computed and ended in any order."""

    requests = Bundle("requests")
    names = Bundle("names")

    @initialize()
    def begin(self) -> None:
        self.placement = Placement()
        self.here: set[str] = set()
        self.known: dict[str, Known] = {}
        self.count = 0

    @rule(target=names, blocks=st.integers(1, 30))
    def join(self, blocks: int) -> str:
        self.count += 1
        name = f"replica {self.count}"
        self.placement.join(replica(name, blocks))
        self.here.add(name)
        return name

    @rule(name=consumes(names))
    def leave(self, name: str) -> None:
        there = [key for key, known in self.known.items() if known.where == name]
        assert list(self.placement.leave(name)) == there
        self.here.discard(name)
        for key in there:
            del self.known[key]

    @rule(
        target=requests,
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=40),
        salt=st.sampled_from(["", "s"]),
        avoided=st.integers(0, 3),
    )
    def arrive(self, prompt: list[int], salt: str, avoided: int) -> object:
        self.count += 1
        key = f"request {self.count}"
        avoid = tuple(sorted(self.here))[:avoided]
        where = place(self.placement, request(key, tuple(prompt), salt=salt), avoid)
        if where is None:
            assert not self.here
            return multiple()
        assert where in self.here
        assert where not in avoid or set(avoid) >= self.here
        self.known[key] = Known(where)
        return key

    @rule(key=requests, cached=st.integers(0, 40))
    def first_token(self, key: str, cached: int) -> None:
        self.placement.first_token(key, cached)

    @rule(key=consumes(requests))
    def end(self, key: str) -> None:
        self.placement.end(key)
        self.known.pop(key, None)

    @rule(name=names, bits=st.lists(st.integers(0, 1), max_size=40), evicts=st.booleans())
    def tell(self, name: str, bits: list[int], evicts: bool) -> None:
        chain = PrefixChains(request("", (*bits, 0))).hashes(replica(name))
        self.placement.changed(name, () if evicts else chain, chain if evicts else ())

    @invariant()
    def counts(self) -> None:
        for name in self.here:
            there = [key for key, known in self.known.items() if known.where == name]
            assert list(self.placement.requests(name)) == there
            assert self.placement.outstanding(name) >= 0
            if not there:
                assert self.placement.outstanding(name) == 0

    def teardown(self) -> None:
        for key in list(self.known):
            self.placement.end(key)
        for name in self.here:
            assert self.placement.outstanding(name) == 0
            assert self.placement.requests(name) == ()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
