"""A full queue is told before anything is read."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
from starlette.types import Message

from loire.server.access.admission import Admission
from loire.server.access.limits import ServerLimits
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from loire.server.web.routes import ROUTES
from support.fake_engine import NAME, FakeEngine, run

QUEUED = [path for path, route in ROUTES.items() if route.generates]
BODY = {"model": NAME, "prompt": "x", "max_tokens": 2}


def full(tiny_llama: Path) -> tuple[ServedModel, FakeEngine]:
    engine = FakeEngine(tiny_llama)
    admission = Admission(ServerLimits(max_queued_requests=1))
    return ServedModel([NAME], engine, admission), engine


def test_a_full_queue_refuses_without_reading_the_body(tiny_llama: Path) -> None:
    served, engine = full(tiny_llama)
    app = create_app(served)

    async def answer_of(path: str) -> Message:
        sent: list[Message] = []

        async def receive() -> Message:
            raise AssertionError("the body was read")

        async def send(message: Message) -> None:
            sent.append(message)

        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": []}
        await app(scope | {"query_string": b"", "root_path": ""}, receive, send)
        return sent[0]

    async def test() -> None:
        engine.gate = asyncio.Event()
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            waiting = asyncio.create_task(client.post("/v1/completions", json=BODY))
            await engine.began.wait()
            for path in QUEUED:
                start = await answer_of(path)
                assert start["status"] == 429, path
                assert (b"retry-after", b"1") in start["headers"]
            # What needs no place in the queue is answered.
            asked = {"model": NAME, "prompt": "x"}
            assert (await client.post("/tokenize", json=asked)).status_code == 200
            engine.gate.set()
            assert (await waiting).status_code == 200
            engine.gate = None
            assert (await client.post("/v1/completions", json=BODY)).status_code == 200

    run(test)
    assert served.admission.num_refused == len(QUEUED)
    assert served.admission.num_admitted == served.admission.num_preparing == 0


def test_a_draining_server_says_so_rather_than_that_it_is_full(tiny_llama: Path) -> None:
    served, engine = full(tiny_llama)

    async def test() -> None:
        engine.gate = asyncio.Event()
        transport = httpx.ASGITransport(app=create_app(served))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            waiting = asyncio.create_task(client.post("/v1/completions", json=BODY))
            await engine.began.wait()
            served.draining = True
            refused = await client.post("/v1/completions", json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            engine.gate.set()
            await waiting

    run(test)
