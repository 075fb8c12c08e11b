"""Streams that have nothing to send are kept alive, in the form of their API."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from loire.server.access.admission import Admission
from loire.server.access.limits import ServerLimits
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, Connection, FakeEngine, run

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMMENT = b": keep-alive\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


@pytest.mark.parametrize(
    ("path", "fields", "filler"),
    [
        ("/v1/chat/completions", CHAT, COMMENT),
        ("/v1/completions", {"prompt": "x", "max_tokens": 2}, COMMENT),
        ("/v1/responses", {"input": "x"}, COMMENT),
        ("/v1/messages", CHAT, PING),
    ],
)
def test_a_stream_that_waits_is_not_silent(
    tiny_llama: Path, path: str, fields: dict[str, Any], filler: bytes
) -> None:
    engine = FakeEngine(tiny_llama)
    limits = ServerLimits(keep_alive_s=0.005)

    async def test() -> None:
        engine.gate, engine.pause = asyncio.Event(), asyncio.Event()
        connection = Connection(engine, path, {"model": NAME, "stream": True, **fields})
        connection.app = create_app(ServedModel([NAME], engine, Admission(limits)))

        def written() -> list[bytes]:
            return [message["body"] for message in connection.sent if message.get("body")]

        async def fillers(count: int) -> None:
            while written().count(filler) < count:
                await asyncio.sleep(0.001)

        running = asyncio.create_task(connection.run())
        await fillers(3)
        if path != "/v1/responses":  # which tells at once that it has begun
            assert set(written()) == {filler}
        engine.gate.set()
        while not any(b'"model"' in part for part in written()):
            await asyncio.sleep(0.001)
        await fillers(written().count(filler) + 3)
        engine.pause.set()
        await running
        await asyncio.sleep(0.02)
        assert connection.sent[-1]["more_body"] is False
        assert written()[-1] != filler
        assert b"".join(part for part in written() if part != filler).count(b"data: ") > 2

    run(test)


def test_a_stream_that_flows_is_not_interrupted(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama)

    async def test() -> None:
        body = {"model": NAME, "stream": True, **CHAT}
        connection = Connection(engine, "/v1/chat/completions", body)
        await connection.run()
        assert COMMENT not in b"".join(message.get("body", b"") for message in connection.sent)

    run(test)
