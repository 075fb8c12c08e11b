"""The number of replicas follows what waits, up at once and down slowly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loire.base.errors import ConfigError
from loire.fleet.autoscaling import Autoscaling, Decision, Demand, decide

POLICY = Autoscaling(min_replicas=1, max_replicas=6, target_queued_tokens=1000.0, down_after_s=60.0)


def test_what_waits_brings_replicas_but_no_more_than_double_at_once() -> None:
    assert decide(POLICY, Demand(900.0, 1.0), 1, Decision(1), 0.0).num_replicas == 1
    assert decide(POLICY, Demand(2500.0, 1.0), 2, Decision(2), 0.0).num_replicas == 3
    assert decide(POLICY, Demand(9e9, 1.0), 2, Decision(2), 0.0).num_replicas == 4
    assert decide(POLICY, Demand(9e9, 1.0), 4, Decision(4), 0.0).num_replicas == 6
    assert decide(POLICY, Demand(9e9, 1.0), 6, Decision(6), 0.0).num_replicas == 6


def test_idle_replicas_go_one_at_a_time_after_a_while() -> None:
    decision, seen = Decision(4), []
    for now_s in range(0, 301, 20):
        decision = decide(POLICY, Demand(0.0, 0.0), decision.num_replicas, decision, float(now_s))
        seen.append(decision.num_replicas)
    assert seen == [4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1]


def test_full_replicas_stay_though_nothing_waits() -> None:
    decision = Decision(2)
    for now_s in (0.0, 100.0, 200.0):
        decision = decide(POLICY, Demand(0.0, 0.5), decision.num_replicas, decision, now_s)
    assert decision.num_replicas == 2  # one alone would be full


def test_a_burst_in_between_begins_the_wait_anew() -> None:
    decision = decide(POLICY, Demand(0.0, 0.0), 2, Decision(2), 0.0)
    decision = decide(POLICY, Demand(1500.0, 0.0), 2, decision, 50.0)
    decision = decide(POLICY, Demand(0.0, 0.0), 2, decision, 70.0)
    assert decision == Decision(2, 70.0)


@given(
    st.floats(0, 1e7), st.floats(0, 1), st.integers(0, 20), st.floats(0, 1e4),
    st.none() | st.floats(0, 1e4),
)  # fmt: skip
def test_it_never_leaves_its_range(
    queued: float, occupancy: float, num: int, now_s: float, since_s: float | None
) -> None:
    decision = decide(POLICY, Demand(queued, occupancy), num, Decision(num, since_s), now_s)
    assert POLICY.min_replicas <= decision.num_replicas <= POLICY.max_replicas


@pytest.mark.parametrize("wrong", [{"min_replicas": 0}, {"min_replicas": 9, "max_replicas": 3}])
def test_ranges_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="is no range"):
        Autoscaling(**wrong)
