"""What is kept of calls is bounded by their requests, found at once, and hidden by nobody."""

import random

import pytest

from loire.server.observe import recent_calls
from loire.server.observe.recent_calls import MAX_LIVES, RecentCalls
from loire.server.web.call import Call, RequestLife


def add(calls: RecentCalls, call: Call, request_id: str) -> None:
    life = RequestLife(request_id, 0.0, 1)
    call.requests.append(life)
    calls.add(call, life)


def test_calls_of_many_requests_push_out_earlier_ones() -> None:
    calls = RecentCalls()
    made = []
    for number in range(20):
        made.append(Call(f"call-{number}"))
        for request in range(1000):
            add(calls, made[-1], f"request-{number}-{request}")
    assert calls.latest() == made[::-1][: MAX_LIVES // 1000]
    assert calls.find("request-19-7") == calls.find("call-19") == [made[19]]
    assert calls.find("request-3-7") == calls.find("call-3") == []


def test_a_callers_id_hides_no_other_call() -> None:
    calls = RecentCalls()
    first, second, third = Call("same", tenant="a"), Call("same", tenant="b"), Call("request-0")
    for number, call in enumerate((first, second, third)):
        add(calls, call, f"request-{number}")
    assert calls.find("same") == [second, first]
    assert calls.find("request-0") == [third, first]


def test_nothing_of_forgotten_calls_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_calls, "MAX_CALLS", 5)
    monkeypatch.setattr(recent_calls, "MAX_LIVES", 12)
    calls, chance = RecentCalls(), random.Random(3)
    running = [Call(f"id-{number % 3}") for number in range(10)]
    for number in range(2000):
        position = chance.randrange(len(running))
        add(calls, running[position], f"request-{number}")
        if len(running[position].requests) > 4:
            running[position] = Call(f"id-{number % 3}")
        known = calls.latest()
        assert len(known) <= 5
        assert sum(len(call.requests) for call in known) == calls._num_lives <= 12
        names = {call.call_id for call in known}
        names |= {life.request_id for call in known for life in call.requests}
        assert set(calls._found_by) == names
    assert all(call in calls.find(call.call_id) for call in calls.latest())
