"""Calls are prepared on threads that no tenant can have all, and only while somebody waits."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from loire.base.errors import BusyError
from loire.base.structured_outputs import StructuredOutputs
from loire.engine.requests import HERE, Origin
from loire.server.access.caller import Caller
from loire.server.host.app import create_app
from loire.server.serving import preparation
from loire.server.serving.preparation import Preparations
from loire.server.serving.served import ServedModel
from loire.server.web.errors import ClientDisconnectedError
from support.fake_engine import NAME, FakeEngine, run

ALICE, BOB = Caller("alice"), Caller("bob")


async def _stays() -> Message:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def test_a_tenant_cannot_have_all_threads() -> None:
    preparations, gate, begun = Preparations(), threading.Event(), []

    def slow(number: int) -> Callable[[], int]:
        def work() -> int:
            begun.append(number)
            gate.wait()
            return number

        return work

    async def test() -> None:
        flood = [
            asyncio.create_task(preparations.run(ALICE, _stays, slow(number)))
            for number in range(20)
        ]
        assert await preparations.run(BOB, _stays, lambda: "bob's") == "bob's"
        assert len(begun) <= preparation.MAX_OF_TENANT
        background = Caller("alice", least_priority=100)
        assert await preparations.run(background, _stays, lambda: "of a batch") == "of a batch"
        gate.set()
        assert await asyncio.gather(*flood) == list(range(20))

    run(test)
    assert not preparations._places
    assert not preparations._num_calls


def test_who_leaves_gives_up_a_place_in_the_line_but_no_running_thread() -> None:
    preparations, gate = Preparations(), threading.Event()
    begun: list[str] = []

    def slow() -> None:
        begun.append("slow")
        gate.wait()

    async def test() -> None:
        leaves, gone = asyncio.Event(), Future[None]()

        async def receive() -> Message:
            await leaves.wait()
            return {"type": "http.disconnect"}

        running = [
            asyncio.create_task(preparations.run(ALICE, receive, slow, gone if first else None))
            for first in (True, False, False, False)
        ]
        while len(begun) < preparation.MAX_OF_TENANT:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(preparations.run(ALICE, receive, slow))
        await asyncio.sleep(0)
        leaves.set()
        for task in (*running, waiting):
            with pytest.raises(ClientDisconnectedError):
                await task
        assert gone.done(), "what the work waits for is told"
        late = asyncio.create_task(preparations.run(ALICE, _stays, lambda: begun.append("late")))
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert begun == ["slow"] * 4, "threads that go on keep their places"
        gate.set()
        await late

    run(test)
    assert begun == ["slow"] * 4 + ["late"]


def test_a_server_that_stops_waits_for_no_thread() -> None:
    code = (
        "import asyncio, threading\n"
        "from loire.server.serving.preparation import Preparations\n"
        "from loire.server.access.caller import Caller\n"
        "async def never():\n"
        "    await asyncio.get_running_loop().create_future()\n"
        "async def main():\n"
        "    begun = threading.Event()\n"
        "    work = lambda: (begun.set(), threading.Event().wait())\n"
        "    task = asyncio.create_task(Preparations().run(Caller(), never, work))\n"
        "    while not begun.is_set():\n"
        "        await asyncio.sleep(0.001)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_constraints_are_checked_for_the_tenant_and_a_crowd_gets_429(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(tiny_llama)
    app = create_app(ServedModel([NAME], engine))
    origins: list[Origin] = []

    def check(form: StructuredOutputs, origin: Origin = HERE) -> None:
        origins.append(origin)
        raise BusyError("16 other constraints wait")

    monkeypatch.setattr(engine.frontend._builder, "check_form", check)

    async def test() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"model": NAME, "max_tokens": 2, "structured_outputs": {"regex": "a+"}}
            chat = {"messages": [{"role": "user", "content": "x"}]}
            for path, rest in (("completions", {"prompt": "x"}), ("chat/completions", chat)):
                answer = await client.post(f"/v1/{path}", json={**body, **rest})
                assert answer.status_code == 429, answer.text
                assert answer.json()["error"]["code"] == "queue_full"
                assert answer.headers["retry-after"] == "1"

    run(test)
    assert len(origins) == 2
    assert all(origin.abandoned is not None for origin in origins)
