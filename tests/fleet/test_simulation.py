"""The simulator: the same arguments give the same outcome, with and without leaps, and an engine
that runs in real order does what the simulated one does."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loire.base.errors import ConfigError
from loire.fleet.arrivals import Agents, Arrival, agent_arrivals, trace_arrivals
from loire.fleet.autoscaling import Autoscaling
from loire.fleet.outcome import FleetOptions, Outcome
from loire.fleet.routing import ROUTINGS
from loire.fleet.simulated_replica import ReplicaOptions
from loire.fleet.simulation import simulate
from loire.fleet.step_costs import StepCosts
from loire.workloads.traces import TraceEntry

COSTS = StepCosts(1e-2, 1e-4, 1e-7, 1e-9)
SMALL = ReplicaOptions(kv_tokens=640, block_size=16, max_num_seqs=4, max_num_batched_tokens=64)


def sessions(num: int = 20, seed: int = 0, **more: int) -> list[Arrival]:
    sizes = {"system_tokens": 64, "first_tokens": 20, "tool_tokens": 20, "output_tokens": 12}
    agents = Agents(
        sessions=num,
        sessions_per_s=4,
        tool_s=0.5,
        **{"turns": 3, "system_prompts": 3, **sizes, **more},
    )
    return [a for a in agent_arrivals(agents, seed=seed) if fits(a)]


def fits(first: Arrival) -> bool:
    return all(turn.num_prompt + turn.num_output <= 640 for turn in first.turns())


def times(outcome: Outcome) -> list[tuple[float | None, ...]]:
    return [(s.arrival_s, s.first_token_s, s.end_s) for s in outcome.served]


arrivals_strategy = st.lists(
    st.builds(
        lambda wait, shared, own, out: Arrival(wait, ((2, shared), (own, 10)), out),
        st.floats(0, 3),
        st.integers(1, 120),
        st.integers(3, 30),
        st.integers(1, 90),
    ),
    min_size=1,
    max_size=25,
)


def test_fronts_that_are_told_of_blocks_find_more() -> None:
    arrivals = sessions(60, system_prompts=12, system_tokens=160, turns=6)
    alone = FleetOptions(replicas=3, fronts=4, replica=replace(SMALL, kv_tokens=1280))
    hits = [
        sum(served.num_cached for served in simulate(arrivals, COSTS, options).served)
        for options in (alone, replace(alone, tells_blocks=True))
    ]
    assert hits[0] < hits[1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    arrivals=arrivals_strategy, replicas=st.integers(1, 3), kv_tokens=st.sampled_from([256, 640])
)
def test_leaps_change_nothing(arrivals: list[Arrival], replicas: int, kv_tokens: int) -> None:
    """Also where memory runs out, so that sequences are preempted and cached blocks evicted."""
    options = FleetOptions(replicas=replicas, replica=replace(SMALL, kv_tokens=kv_tokens))
    with_leaps = simulate(arrivals, COSTS, options)
    step_by_step = simulate(arrivals, COSTS, options, leaps=False)
    for leap, step in zip(with_leaps.served, step_by_step.served, strict=True):
        assert leap.num_cached == step.num_cached
        assert leap.first_token_s == pytest.approx(step.first_token_s)
        assert leap.end_s == pytest.approx(step.end_s)
    assert with_leaps.num_steps == step_by_step.num_steps
    assert with_leaps.num_preemptions == step_by_step.num_preemptions
    assert with_leaps.busy_s == pytest.approx(step_by_step.busy_s)
    assert with_leaps.requests_per_replica == step_by_step.requests_per_replica


@pytest.mark.parametrize("routing", list(ROUTINGS))
def test_the_same_seed_gives_the_same_outcome(routing: str) -> None:
    options = FleetOptions(replicas=3, routing=routing, replica=SMALL, fronts=2, seed=5)
    first = simulate(sessions(), COSTS, options)
    assert times(simulate(sessions(), COSTS, options)) == times(first)
    assert all(served.end_s is not None for served in first.served)


def test_one_replica_alone_takes_the_time_that_its_steps_cost() -> None:
    outcome = simulate([Arrival(1.0, ((2, 100),), 3)], COSTS, FleetOptions(replica=SMALL))
    [served] = outcome.served
    first = 2e-2 + 100e-4 + (64 + 100) * 1e-7 + 100 * 101 / 2 * 1e-9
    assert served.first_token_s == pytest.approx(1.0 + first)
    assert served.end_s is not None
    rest = 2 * (1e-2 + 1e-4) + (101 + 102) * (1e-7 + 1e-9)
    assert served.end_s == pytest.approx(1.0 + first + rest)
    assert outcome.busy_s == pytest.approx(first + rest)
    assert outcome.num_steps == 4


def test_turns_find_what_came_before_them() -> None:
    later = Arrival(0.5, ((2, 64), (1, 20), (3, 12)), 4)
    outcome = simulate(
        [Arrival(0.0, ((2, 64),), 20, then=later)], COSTS, FleetOptions(replica=SMALL)
    )
    first, second = outcome.served
    assert first.end_s is not None
    assert second.arrival_s == pytest.approx(first.end_s + 0.5)
    # 83 tokens of the first were computed: the last one it gave never was.
    assert (first.num_cached, second.num_cached) == (0, 80)
    assert outcome.hit_bound == pytest.approx(80 / (64 + 96))


def test_placement_by_work_finds_more_than_chance() -> None:
    hits = {}
    for routing in ("work", "random"):
        options = FleetOptions(replicas=4, routing=routing, replica=SMALL)
        served = simulate(sessions(60), COSTS, options).served
        hits[routing] = sum(s.num_cached for s in served) / sum(s.num_prompt for s in served)
    assert hits["work"] > hits["random"] + 0.1


def test_replicas_come_with_the_load_and_go_after_it() -> None:
    burst = [Arrival(i / 100, ((i + 2, 200),), 20) for i in range(100)]
    late = [Arrival(60.0 + i, ((i + 500, 20),), 4) for i in range(60)]
    scaling = Autoscaling(
        min_replicas=1, max_replicas=4, target_queued_tokens=500, down_after_s=5.0
    )
    options = FleetOptions(
        replica=SMALL, autoscaling=scaling, startup_s=0.5, decide_every_s=0.5, routing="work"
    )
    outcome = simulate([*burst, *late], COSTS, options)
    most = max(sample.num_replicas for sample in outcome.samples)
    assert most == 4
    assert outcome.samples[-1].num_replicas == 1
    assert all(served.end_s is not None for served in outcome.served)
    fixed = simulate([*burst, *late], COSTS, replace(options, autoscaling=None))
    assert max(s.end_s or 0 for s in outcome.served[:100]) < max(
        s.end_s or 0 for s in fixed.served[:100]
    )
    assert 1 * outcome.end_s < outcome.replica_s < 4 * outcome.end_s


def test_what_a_leaving_replica_computed_moves_on() -> None:
    long = [Arrival(i / 100, ((i + 2, 30),), 500) for i in range(8)]
    scaling = Autoscaling(max_replicas=4, target_queued_tokens=1e6, down_after_s=0.2)
    options = FleetOptions(
        replicas=4, replica=replace(SMALL, kv_tokens=6400, max_num_seqs=32), autoscaling=scaling,
        decide_every_s=0.3,
    )  # fmt: skip
    outcome = simulate(long, COSTS, options)
    assert sum(served.num_moves for served in outcome.served) >= 3
    # Not started anew: whoever moved ends hardly later than those that stayed.
    ends = [served.end_s or 0.0 for served in outcome.served]
    assert max(ends) < 1.5 * min(ends)
    step_by_step = simulate(long, COSTS, options, leaps=False)
    assert [s.num_moves for s in step_by_step.served] == [s.num_moves for s in outcome.served]
    assert times(step_by_step) == [tuple(map(pytest.approx, t)) for t in times(outcome)]


def test_mooncake_names_are_equal_prefixes() -> None:
    entries = [
        TraceEntry(0.0, 1100, 4, (7, 8, 9)),
        TraceEntry(5.0, 1100, 4, (7, 8, 10)),
        TraceEntry(9.0, 600, 4),
    ]
    arrivals = trace_arrivals(entries, speed=2.0)
    assert [arrival.wait_s for arrival in arrivals] == [0.0, 2.5, 4.5]
    assert [arrival.num_prompt for arrival in arrivals] == [1100, 1100, 600]
    outcome = simulate(arrivals, COSTS, FleetOptions(replica=ReplicaOptions(kv_tokens=4096)))
    assert [served.num_cached for served in outcome.served] == [0, 1024, 0]
    assert outcome.hit_bound == pytest.approx(1024 / 2800)


def test_requests_that_no_pool_holds_are_refused_with_their_size() -> None:
    with pytest.raises(ConfigError, match=r"1 of 1 requests are larger .* 640 tokens; .* 1,010"):
        simulate([Arrival(0.0, ((2, 1000),), 10)], COSTS, FleetOptions(replica=SMALL))
    with pytest.raises(ConfigError, match="no requests"):
        simulate([], COSTS, FleetOptions())
    with pytest.raises(ConfigError, match="no routing 'best'; there are work, random"):
        simulate([Arrival(0.0, ((2, 10),), 1)], COSTS, FleetOptions(routing="best"))
