"""A full queue is told before anything is read."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from loire.server.access.admission import Admission, Ticket
from loire.server.access.limits import ServerLimits
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from loire.server.web.call import Waiting
from loire.server.web.errors import ApiError
from loire.server.web.routes import ROUTES
from support.fake_engine import NAME, FakeEngine, run

QUEUED = [path for path, route in ROUTES.items() if route.generates]
BODY = {"model": NAME, "prompt": "x", "max_tokens": 2}


def full(tiny_llama: Path, max_queued_requests: int = 1) -> tuple[ServedModel, FakeEngine]:
    engine = FakeEngine(tiny_llama)
    admission = Admission(ServerLimits(max_queued_requests=max_queued_requests))
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


def test_the_bound_counts_sequences_and_not_calls(tiny_llama: Path) -> None:
    served, engine = full(tiny_llama, 10)
    asked = {"model": NAME, "max_tokens": 2}

    async def test() -> None:
        engine.gate = asyncio.Event()
        transport = httpx.ASGITransport(app=create_app(served))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def post(
                num_prompts: int, path: str = "completions", **more: int
            ) -> httpx.Response:
                name = "input" if path == "embeddings" else "prompt"
                body = {**asked, **more, name: [str(n) for n in range(num_prompts)]}
                if path == "embeddings":
                    del body["max_tokens"]
                return await client.post(f"/v1/{path}", json=body)

            # Together, so that each finds the queue empty when it comes.
            first = [asyncio.create_task(post(4)) for _ in range(3)]
            while len(engine.running) < 8 or served.admission.num_preparing:
                await asyncio.sleep(0.001)
            for path, num_prompts, more in (
                ("completions", 3, {}),
                ("completions", 1, {"n": 3}),
                ("embeddings", 3, {}),
            ):
                refused = await post(num_prompts, path, **more)
                assert refused.status_code == 429
                error = refused.json()["error"]
                assert error["code"] == "queue_full"
                assert "8 sequences are waiting, this call brings 3 more" in error["message"]
                never = await post(11, path)
                assert (never.status_code, never.json()["error"]["code"]) == (
                    400,
                    "too_many_prompts",
                )
            last = asyncio.create_task(post(2))
            while len(engine.running) < 10:
                await asyncio.sleep(0.001)
            engine.gate.set()
            answers = [(await answer).status_code for answer in first]
            assert sorted(answers) == [200, 200, 429]
            assert (await last).status_code == 200

    run(test)
    assert served.admission.num_admitted == served.admission.num_preparing == 0
    assert len(engine.submissions) == 10


def test_many_sequences_count_in_the_share_of_their_tenant() -> None:
    admission, waiting = Admission(ServerLimits(max_queued_requests=20)), Waiting()
    admission.check(waiting, "alice", waiting, 16)
    with pytest.raises(ApiError, match="brings 17 more, the limit is 16 at this moment"):
        admission.check(waiting, "alice", waiting, 17)
    admission.check(waiting, "", waiting, 20)
    ticket = Ticket(admission)
    admission.admit(ticket, waiting, "alice", waiting)
    admission.admit(ticket, waiting, "alice", waiting, 16)  # what it holds is not counted twice
    assert admission.num_preparing == admission.num_preparing_of["alice"] == 16
    with pytest.raises(ApiError, match="16 sequences of tenant 'alice'"):
        admission.check(waiting, "alice", waiting)
    admission.check(waiting, "bob", Waiting(), 4)
    ticket.joins_queue(3)
    assert admission.num_preparing == 13
    ticket.end()
    assert admission.num_preparing == admission.num_preparing_of["alice"] == 0
