"""When another engine is started, and when no more."""

import pytest

from loire.base.errors import EngineError
from loire.engine.restarts import MAX_DELAY_S, MAX_SHORT_LIVES, REAL_WORK_STEPS, Restarts


def live(restarts: Restarts, num_steps: int) -> float:
    """One life; the pause after it."""
    restarts.became_ready()
    for _ in range(num_steps):
        restarts.did_step()
    return restarts.died("exit status 1", ("a last line",))


def test_an_engine_that_worked_is_replaced_at_once() -> None:
    restarts = Restarts()
    assert [live(restarts, REAL_WORK_STEPS) for _ in range(50)] == [0.0] * 50


def test_pauses_grow_and_end() -> None:
    restarts = Restarts()
    pauses = [live(restarts, REAL_WORK_STEPS - 1) for _ in range(MAX_SHORT_LIVES - 1)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, MAX_DELAY_S, MAX_DELAY_S, MAX_DELAY_S]
    with pytest.raises(EngineError, match=r"10 times within its first 32 steps(.|\n)*a last line"):
        live(restarts, 0)


def test_becoming_ready_is_no_work() -> None:
    restarts = Restarts()
    assert [live(restarts, 0) for _ in range(3)] == [0.5, 1.0, 2.0]


def test_work_ends_the_counting() -> None:
    restarts = Restarts()
    for _ in range(5):
        live(restarts, 0)
    assert live(restarts, REAL_WORK_STEPS + 3) == 0.0
    assert live(restarts, 0) == 0.5


def test_engines_that_are_never_ready_end_sooner() -> None:
    restarts = Restarts()
    assert restarts.died("exit status 1", ()) == 0.5
    assert restarts.died("exit status 1", ()) == 1.0
    with pytest.raises(EngineError, match="3 times before it was ready"):
        restarts.died("killed by signal 9", ())
