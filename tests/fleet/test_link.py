"""Requests over many replicas: whatever happens to those, each ends once and with its own text."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loire.base.errors import EngineError, RequestError
from loire.base.messages import AnnouncedAdapter, EngineRequest
from loire.base.sampling import SamplingParams
from loire.engine.wire import Announce, Submit
from loire.fleet.link import FleetLink
from loire.fleet.messages import Blocks, Draining, Joined
from loire.fleet.placement import Placement, PrefixChains
from support.fake_replica import AHEAD_S, HARMFUL, FakeFleet, FakeReplica, config


def in_fleet(names: str, play: Callable[[FakeFleet], Awaitable[None]]) -> FakeFleet:
    """Let something happen to a fleet of replicas with these one-letter names."""

    async def run() -> FakeFleet:
        fleet = FakeFleet(*names)
        await fleet.settle()
        await play(fleet)
        await fleet.close()
        return fleet

    return asyncio.run(run())


def holders(fleet: FakeFleet, request_id: str) -> list[str]:
    """Replicas that were sent a request, in order of their names."""
    return [
        name
        for name, replica in sorted(fleet.replicas.items())
        if any(r.request_id.endswith(f"/{request_id}") for r in replica.submits)
    ]


@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_requests_end_with_their_texts(names: str) -> None:
    async def play(fleet: FakeFleet) -> None:
        for index in range(12):
            fleet.submit(f"r{index}", (index, 2, 3), n=1 + index % 3)
        await fleet.run()
        assert sum(len(r.submits) for r in fleet.replicas.values()) == 12
        assert all(replica.submits for replica in fleet.replicas.values())

    in_fleet(names, play).check()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("rounds", range(14))
def test_a_replica_is_killed_after_any_token(rounds: int, n: int) -> None:
    async def play(fleet: FakeFleet) -> None:
        fleet.submit("r", range(14, 54), n=n, min_tokens=10)
        for _ in range(rounds):
            await fleet.round()
        await fleet.settle()
        if fleet.link.num_requests:
            await fleet.kill(holders(fleet, "r")[0])
            assert len(holders(fleet, "r")) == 1
        await fleet.run()

    in_fleet("ab", play).check()


def test_killed_twice_and_then_nobody_is_left() -> None:
    async def play(fleet: FakeFleet) -> None:
        for index in range(6):
            fleet.submit(f"r{index}", (index, 5), n=2, max_tokens=40, min_tokens=39)
        for name in "abc":
            for _ in range(5):
                await fleet.round()
            await fleet.kill(name)
        assert fleet.link.num_requests == fleet.link.num_waiting == 6
        await fleet.round()
        fleet.add("d")
        await fleet.run()
        assert fleet.link.num_restarts == 3
        assert fleet.link.num_moves >= 6

    in_fleet("abc", play).check()


def test_in_the_prefill() -> None:
    async def play(fleet: FakeFleet) -> None:
        fleet.submit("long", [7] * 200)
        await fleet.round()  # 64 of 200
        await fleet.kill(holders(fleet, "long")[0])
        await fleet.run()

    in_fleet("ab", play).check()


def test_a_lost_engine_is_left_at_once_if_there_is_another() -> None:
    async def play(fleet: FakeFleet) -> None:
        fleet.submit("r", max_tokens=30, min_tokens=29)
        await fleet.round()
        [name] = holders(fleet, "r")
        lost = fleet.replicas[name]
        lost.lose()
        await fleet.settle()
        assert holders(fleet, "r") == ["a", "b"]
        lost.join()
        await fleet.run()

    in_fleet("ab", play).check()


@pytest.mark.parametrize("names", ["a", "ab"])
def test_an_engine_that_was_given_up_comes_back(names: str) -> None:
    """What it tells of the requests that it had is nothing to them any more."""

    async def play(fleet: FakeFleet) -> None:
        fleet.submit("r", max_tokens=30, min_tokens=29)
        for _ in range(3):
            await fleet.round()
        [name] = holders(fleet, "r")
        still = fleet.replicas[name]
        still.stand_still()
        for _ in range(3):
            await fleet.round()
        assert len(fleet.tokens["r", 0]) == (6 if names == "ab" else 3)
        still.move_again()
        await fleet.settle()
        assert len(fleet.link.replicas) == len(names)
        await fleet.run()
        assert still.core is not None
        assert not still.core.has_work

    in_fleet(names, play).check()


def test_the_only_replica_goes_on_with_its_next_engine() -> None:
    async def play(fleet: FakeFleet) -> None:
        fleet.submit("r", max_tokens=30, min_tokens=29)
        await fleet.round()
        fleet.replicas["a"].lose()
        await fleet.settle()
        assert fleet.link.replicas == ()
        assert fleet.link.alive
        fleet.replicas["a"].join()
        await fleet.run()

    in_fleet("a", play).check()


def test_a_poison_request_fails_alone() -> None:
    async def play(fleet: FakeFleet) -> None:
        for index in range(8):
            fleet.submit(f"r{index}", (index, 9), max_tokens=30, min_tokens=29)
        await fleet.round()
        fleet.submit("poison", (HARMFUL, 1))
        for index in range(8, 12):
            fleet.submit(f"r{index}", (index, 9))
        for _ in range(200):
            await fleet.round()
            for replica in fleet.replicas.values():
                if replica.core is None:
                    replica.join()
        assert fleet.link.num_requests == 0
        assert fleet.link.num_restarts <= 3

    in_fleet("abc", play).check("poison")


def test_streams_move_from_a_replica_that_will_stop() -> None:
    async def play(fleet: FakeFleet) -> None:
        for index in range(6):
            fleet.submit(f"r{index}", (index, 4), n=2, max_tokens=30, min_tokens=29)
        for _ in range(4):
            await fleet.round()
        leaving = fleet.replicas["a"]
        num_there = len(leaving.submits)
        assert num_there
        leaving.say(Draining())
        await fleet.settle()
        assert leaving.core is not None
        assert not leaving.core.has_work, "it was told to end what had moved"
        assert fleet.link.num_moves == num_there
        fleet.submit("later")
        assert "a" not in holders(fleet, "later")
        await fleet.kill("a")
        assert fleet.link.num_moves == num_there
        await fleet.run()

    in_fleet("ab", play).check()


def test_without_another_a_stopping_replica_keeps_its_streams_until_there_is_one() -> None:
    async def play(fleet: FakeFleet) -> None:
        fleet.submit("r", max_tokens=30, min_tokens=29)
        await fleet.round()
        fleet.replicas["a"].say(Draining())
        for _ in range(3):
            await fleet.round()
        assert len(fleet.tokens["r", 0]) == 4
        fleet.submit("later")
        assert holders(fleet, "later") == []
        fleet.add("b")
        await fleet.settle()
        assert holders(fleet, "r") == ["a", "b"]
        await fleet.run()

    in_fleet("a", play).check()


def test_an_engine_that_comes_back_where_the_replica_will_stop_takes_nothing() -> None:
    async def play(fleet: FakeFleet) -> None:
        replica = fleet.replicas["a"]
        replica.say(Draining())
        replica.lose()
        replica.join()
        await fleet.settle()
        fleet.submit("r")
        await fleet.settle()
        assert replica.submits == []
        fleet.add("b")
        await fleet.run()

    in_fleet("a", play).check()


def test_a_new_replica_takes_over_what_waits() -> None:
    async def play(fleet: FakeFleet) -> None:
        for index in range(40):
            fleet.submit(f"r{index}", [20 + index] * 20)
        await fleet.round()
        fleet.add("b")
        await fleet.settle()
        assert len(fleet.replicas["b"].submits) >= 10
        await fleet.run()

    in_fleet("a", play).check()


def test_prefixes_are_found_again() -> None:
    async def play(fleet: FakeFleet) -> None:
        system = tuple(range(20, 60))
        fleet.submit("first", system)
        await fleet.run()
        [name] = holders(fleet, "first")
        fleet.submit("second", (*system, 50))
        await fleet.run()
        assert holders(fleet, "second") == [name]
        assert fleet.updates[-1].num_cached_tokens == 40

    in_fleet("abcd", play).check()


def test_fronts_share_what_is_cached() -> None:
    """A front that never sent a prompt finds it, and finds it no more once it is evicted."""
    system = tuple(range(20, 60))

    async def play(fleet: FakeFleet) -> None:
        fleet.submit("first", system)
        await fleet.run()
        [name] = holders(fleet, "first")
        told = fleet.replicas[name].told
        placement = Placement()
        other = FleetLink(lambda updates: None, placement=placement)
        twins = {twin: FakeReplica(twin) for twin in "abcd"}
        following = [asyncio.create_task(other.follow(twin)) for twin in twins.values()]
        for twin in twins:
            twins[twin].say(Blocks(fleet.replicas[twin].told))
        await asyncio.sleep(0.01)
        second = PrefixChains(EngineRequest("second", (*system, 50), SamplingParams(), 0))
        assert {twin: placement.matched_tokens(twin, second) for twin in twins} == {
            twin: 40 if twin == name else 0 for twin in twins
        }
        twins[name].say(Blocks(evicted=told[16:24]))
        await asyncio.sleep(0.01)
        assert placement.matched_tokens(name, second) == 8
        other.close()
        for twin in twins.values():
            twin.kill()
        await asyncio.gather(*following)

    in_fleet("abcd", play).check()


def test_equal_numbers_are_preferred_once_something_was_given() -> None:
    async def play(fleet: FakeFleet) -> None:
        fleet.add("a", numbers="bf16")
        await fleet.settle()
        fleet.submit("r", max_tokens=20, min_tokens=19)
        await fleet.round()
        for name, numbers in (("b", "int8"), ("c", "bf16"), ("d", "int8")):
            fleet.add(name, numbers=numbers)
        await fleet.settle()
        await fleet.kill("a")
        assert holders(fleet, "r") == ["c"]
        await fleet.run()

    in_fleet("", play).check()


def test_clients_that_leave_free_what_they_had() -> None:
    async def play(fleet: FakeFleet) -> None:
        fleet.link.abort("never there")
        fleet.submit("homeless")
        fleet.link.abort("homeless")
        fleet.add("a")
        await fleet.settle()
        fleet.submit("one", max_tokens=50, min_tokens=49)
        fleet.submit("two", n=2, max_tokens=50, min_tokens=49)
        await fleet.round()
        fleet.link.abort("one")
        fleet.link.abort_choice("two", 0)
        await fleet.round()
        core = fleet.replicas["a"].core
        assert core is not None
        assert core.scheduler.num_requests == fleet.link.num_requests == 1
        fleet.link.abort_choice("two", 1)
        await fleet.round()
        assert core.scheduler.num_requests == fleet.link.num_requests == 0
        assert fleet.link.num_waiting_tokens == 0

    in_fleet("", play)


def test_a_choice_that_has_ended_stays_ended_elsewhere() -> None:
    async def play(fleet: FakeFleet) -> None:
        fleet.submit("r", n=2, max_tokens=30, min_tokens=29)
        for _ in range(5):
            await fleet.round()
        fleet.link.abort_choice("r", 0)
        length = len(fleet.tokens["r", 0])
        await fleet.kill(holders(fleet, "r")[0])
        await fleet.run()
        assert len(fleet.tokens["r", 0]) == length
        assert fleet.ends["r", 1] == ["length"]

    in_fleet("ab", play)


def test_ids_differ_between_fronts_and_between_sendings() -> None:
    async def play(fleet: FakeFleet) -> None:
        other = FleetLink(lambda updates: None)
        replica = FakeReplica("shared")
        following = asyncio.create_task(other.follow(replica))
        await asyncio.sleep(0)
        fleet.submit("request-0")
        await fleet.settle()
        other.submit([fleet.requests["request-0"]])
        await asyncio.sleep(0.01)
        await fleet.kill(holders(fleet, "request-0")[0])
        ids = [r.request_id for r in fleet.replicas["b"].submits]
        ids += [r.request_id for r in replica.submits]
        assert len(set(ids)) == 2
        other.close()
        replica.kill()
        await following

    in_fleet("ab", play)


def test_adapters_are_announced_before_there_is_work_for_them() -> None:
    style = AnnouncedAdapter("style", "/adapters/style")

    async def play(fleet: FakeFleet) -> None:
        fleet.link.announce(style)
        fleet.submit("r", adapter="style", max_tokens=30, min_tokens=29)
        await fleet.round()
        assert [r.announced for r in fleet.replicas.values()] == [[style]] * 2
        [name] = holders(fleet, "r")
        # One that comes later is told first, and gets work for it once it has looked.
        late = fleet.add("late")
        late.checks = False
        await fleet.settle()
        fleet.submit("waits", adapter="style")
        for other in {"a", "b"} - {name}:
            await fleet.kill(other)
        await fleet.kill(name)
        assert fleet.link.num_waiting == 2
        assert late.submits == []
        fleet.submit("plain")
        await fleet.settle()
        assert [r.adapter for r in late.submits] == [""]
        late.check("style")
        for _ in range(8):
            await fleet.round()
        kinds = [type(message) for message in late.heard]
        assert kinds == [Announce, Submit, Submit, Submit]
        # A new engine is told again; a name that is gone is told as long as requests need it.
        late.checks = True
        fleet.link.announce(replace(style, withdrawn=True))
        late.lose()
        late.join()
        await fleet.settle()
        assert late.announced[-1].withdrawn
        await fleet.run()
        late.announced.clear()
        late.lose()
        late.join()
        await fleet.settle()
        assert late.announced == []

    in_fleet("ab", play).check()


def test_adapters_go_where_they_can_be_had() -> None:
    async def play(fleet: FakeFleet) -> None:
        fleet.replicas["a"].missing.add("style")
        fleet.link.announce(AnnouncedAdapter("style", "/adapters/style"))
        for index in range(6):
            fleet.submit(f"r{index}", (index, 3), adapter="style")
        await fleet.run()
        assert all(holders(fleet, f"r{index}") == ["b"] for index in range(6))
        await fleet.kill("b")
        fleet.submit("nowhere", adapter="style")
        fleet.submit("plain")
        await fleet.run()
        assert fleet.updates[-1].error is None
        [error] = [update.error for update in fleet.updates if update.error]
        assert error == "the adapter cannot be loaded: a has no such file"
        # Once it is there, loading it anew is enough.
        fleet.replicas["a"].missing.clear()
        fleet.link.announce(AnnouncedAdapter("style", "/adapters/style"))
        fleet.submit("again", adapter="style")
        await fleet.run()

    in_fleet("ab", play).check("nowhere")


def test_times_are_those_of_the_fronts_clock() -> None:
    async def play(fleet: FakeFleet) -> None:
        before = time.monotonic()
        fleet.submit("r")
        await fleet.run()
        first = fleet.updates[0].first_scheduled_s
        assert first is not None
        assert before - AHEAD_S / 2 < first < before + AHEAD_S / 2

    in_fleet("a", play)


def test_replicas_that_do_not_fit_are_not_used() -> None:
    def accepts(joined: Joined) -> None:
        if joined.model != "digest":
            raise EngineError("it serves another model")

    async def play() -> None:
        link = FleetLink(lambda updates: None, accepts=accepts)
        replica = FakeReplica("other")
        replica.lose()
        replica.joined = Joined("other", config(), "", "of another")
        replica.join()
        replica.kill()
        await link.follow(replica)
        link.submit([EngineRequest("r", (1,), SamplingParams(), 0)])
        assert (link.num_waiting, link.replicas, replica.submits) == (1, (), [])

    asyncio.run(play())


def test_what_cannot_cross_is_the_requests_fault() -> None:
    async def play(fleet: FakeFleet) -> None:
        bad = EngineRequest("bad", (1,), SamplingParams(), 0, cache_salt="\ud800")
        good = EngineRequest("good", (1,), SamplingParams(), 0)
        with pytest.raises(RequestError, match="cannot be sent"):
            fleet.link.submit([good, bad])
        assert fleet.link.num_requests == 0
        fleet.link.close()
        with pytest.raises(EngineError, match="closed"):
            fleet.link.submit([good])

    in_fleet("a", play)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_anything_may_happen(data: st.DataObject) -> None:
    """Kills, losses, drains and new replicas in any order: nothing is lost, nothing twice."""

    async def play(fleet: FakeFleet) -> None:
        names = (f"replica{i}" for i in range(1000))
        for _ in range(data.draw(st.integers(1, 3))):
            fleet.add(next(names))
        num_requests = 0
        for _ in range(data.draw(st.integers(1, 40))):
            of_replicas = ["kill", "lose", "join", "drain", "stand still", "move again"]
            match data.draw(st.sampled_from(["round", "submit", "add", *of_replicas])):
                case "submit" if num_requests < 12:
                    prompt = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=30))
                    n = data.draw(st.integers(1, 3))
                    fleet.submit(f"r{num_requests}", prompt, n=n, max_tokens=10)
                    num_requests += 1
                case "add" if len(fleet.replicas) < 4:
                    fleet.add(next(names))
                case "round" | "submit" | "add":
                    await fleet.round()
                case event if fleet.replicas:
                    name = data.draw(st.sampled_from(sorted(fleet.replicas)))
                    replica = fleet.replicas[name]
                    if event == "kill":
                        await fleet.kill(name)
                    elif event == "drain":
                        replica.say(Draining())
                    elif event == "lose" and replica.core is not None:
                        replica.lose()
                    elif event == "join" and replica.core is None:
                        replica.join()
                    elif event == "stand still" and replica.core is not None:
                        replica.stand_still()
                    elif event == "move again" and replica.core and replica.stands_still:
                        replica.move_again()
        fleet.add(next(names))
        await fleet.run()

    fleet = in_fleet("", play)
    failed = [key for (key, _), ends in fleet.ends.items() if ends == ["error"]]
    fleet.check(*failed)
