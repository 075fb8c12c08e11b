"""The stream of the engine's steps: what is in it, how often, and how much at most."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loire.base.errors import LoireError
from loire.base.step import SlotRecord, StepRecord
from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.options import Access
from loire.server.host.app import create_app
from loire.server.operations import live
from loire.server.operations.live import MAX_SLOTS, MAX_STEPS, StepView, describe, live_events
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine, call, run


def step(number: int, *slots: SlotRecord, hits: int = 0, preemptions: int = 0) -> StepRecord:
    return StepRecord(
        step_id=number,
        time_s=100.0 + number,
        compute_s=0.5,
        slots=slots,
        num_running=len(slots),
        num_waiting=2,
        blocks_free=50,
        blocks_cached=4,
        blocks_in_use=10,
        kv_live_tokens=150,
        kv_fragmented_tokens=10,
        kv_reserved_tokens=0,
        kv_idle_tokens=0,
        num_preemptions=preemptions,
        num_prefix_hit_tokens=hits,
    )


def slot(number: int, request: str = "r", prefill: int = 0, decode: int = 1) -> SlotRecord:
    return SlotRecord(number, number, request, prefill, decode, False, 3)


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama)


def watch(engine: FakeEngine) -> AsyncGenerator[bytes, None]:
    return live_events(ServedModel([NAME], engine), describe(engine))


async def take(events: AsyncGenerator[bytes, None]) -> Any:
    """The next event."""
    data = (await anext(events)).decode()
    assert data.startswith("data: ")
    assert data.endswith("\n\n")
    return json.loads(data[len("data: ") :])


def test_the_first_event_describes_the_engine(engine: FakeEngine) -> None:
    async def test() -> None:
        events = watch(engine)
        assert await take(events) == {
            "engine": {
                "policy": "paged",
                "max_num_seqs": 8,
                "max_num_batched_tokens": 256,
                "block_size": 16,
                "num_blocks": 64,
                "prefix_caching": True,
            }
        }
        assert await take(events) == {"idle": True}
        await events.aclose()

    run(test)


def test_steps_come_together_with_their_totals(engine: FakeEngine) -> None:
    async def test() -> None:
        engine.records.append(step(0, slot(7)))
        events = watch(engine)
        await take(events)
        engine.running.append("r")
        assert await take_soon(events) is None, "steps from before are not shown"
        events = watch(engine)
        await take(events)
        waiting = asyncio.ensure_future(take(events))
        await asyncio.sleep(0)
        engine.records += [
            step(1, slot(0, "a", prefill=20, decode=0), hits=16),
            step(2, slot(0, "a"), slot(1, "b", prefill=5, decode=0), preemptions=1),
        ]
        news = await waiting
        assert news["totals"] == {
            "steps": 2,
            "prefill_tokens": 25,
            "decode_tokens": 1,
            "prefix_hit_tokens": 16,
            "preemptions": 1,
        }
        assert news["skipped"] == 0
        assert [entry["step"] for entry in news["steps"]] == [1, 2]
        assert news["steps"][0] == {
            "step": 1,
            "time_s": 101.0,
            "compute_s": 0.5,
            "running": 1,
            "waiting": 2,
            "free": 50,
            "cached": 4,
            "in_use": 10,
            "slots": [
                {
                    "slot": 0,
                    "seq": 0,
                    "request": 0,
                    "prefill": 20,
                    "decode": 0,
                    "ended": False,
                    "blocks": 3,
                }
            ],
        }
        await events.aclose()

    run(test)


async def take_soon(events: AsyncGenerator[bytes, None]) -> Any:
    """The next event, or None if there is none for three intervals."""
    try:
        return await asyncio.wait_for(take(events), 3 * live.INTERVAL_S)
    except asyncio.TimeoutError:
        return None


def test_an_idle_engine_is_told_once_and_then_silent(engine: FakeEngine) -> None:
    async def test() -> None:
        events = watch(engine)
        await take(events)
        assert await take(events) == {"idle": True}
        assert await take_soon(events) is None

    run(test)


def test_the_stream_ends_with_the_engine(engine: FakeEngine) -> None:
    async def test() -> None:
        events = watch(engine)
        await take(events)
        engine.alive = False
        with pytest.raises(LoireError, match="stopped"):
            await take(events)

    run(test)


def test_completions_of_one_request_have_one_number() -> None:
    view = StepView([])
    first = view.take([step(0, slot(3, "a"), slot(4, "a"), slot(5, "b"))])
    assert first is not None
    assert first.steps is not None
    assert [entry.request for entry in first.steps[0].slots] == [3, 3, 5]
    later = view.take([step(0), step(1, slot(4, "a"), slot(6, "c"))])
    assert later is not None
    assert later.steps is not None
    assert [entry.request for entry in later.steps[0].slots] == [3, 6]


def test_an_event_is_bounded_and_says_what_it_left_out() -> None:
    many = [step(number, slot(0)) for number in range(1000)]
    news = StepView([]).take(many)
    assert news is not None
    assert news.steps is not None
    assert news.totals is not None
    assert [entry.step for entry in news.steps] == list(range(1000 - MAX_STEPS, 1000))
    assert news.skipped == 1000 - MAX_STEPS
    assert news.totals.decode_tokens == 1000
    wide = [step(number, *map(slot, range(1000))) for number in range(5)]
    news = StepView([]).take(wide)
    assert news is not None
    assert news.steps is not None
    assert len(news.steps) == MAX_SLOTS // 1000
    one = StepView([]).take([step(0, *map(slot, range(2 * MAX_SLOTS)))])
    assert one is not None
    assert one.skipped == 0


def test_a_new_engine_counts_its_steps_from_the_beginning() -> None:
    """Its step ids begin again; the time goes on."""
    view = StepView([step(40, slot(0))])
    restarted = StepRecord(**{**_fields(step(41, slot(0))), "step_id": 0})
    news = view.take([step(40, slot(0)), restarted])
    assert news is not None
    assert news.steps is not None
    assert [entry.step for entry in news.steps] == [0]


def _fields(record: StepRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in StepRecord.__slots__}


def test_no_engine_is_an_error_with_a_status() -> None:
    assert call(None, "GET", "/admin/live").status_code == 503


def test_with_keys_only_an_admin_may_watch(engine: FakeEngine) -> None:
    user, root = "user-key-0123456789", "root-key-0123456789"
    ring = KeyRing(
        [
            parse_key(f"user:{user}", place="test"),
            parse_key(f"root:{root}", place="test", admin=True),
        ]
    )
    engine.alive = False  # or else the stream of whoever may watch would not end
    app = create_app(ServedModel([NAME], engine), Access(ring=ring))

    async def status(headers: dict[str, str]) -> int:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/admin/live", headers=headers)).status_code

    assert asyncio.run(status({})) == 401
    assert asyncio.run(status({"Authorization": f"Bearer {user}"})) == 403
    assert asyncio.run(status({"Authorization": f"Bearer {root}"})) == 503
