"""Who is let in to a replica, and how connections end."""

import asyncio
import gc
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loire.base.errors import EngineError
from loire.engine import pulse
from loire.engine.wire import Abort, WireError, framed
from loire.fleet import door as module
from loire.fleet.door import Address, DoorChannel, ReplicaDoor
from loire.fleet.messages import WIRE_VERSION, Begun, Lost, ToReplica, encode, read_to_replica
from support.fake_replica import FakeFleet


class Replica:
    """What a door uses of an EngineReplica. It talks without a pause."""

    def __init__(self) -> None:
        self.heard: list[ToReplica] = []
        self.fronts: set[str] = set()

    async def attach(self, front: str, wire_version: int) -> AsyncGenerator[bytes, None]:
        if wire_version != WIRE_VERSION:
            raise EngineError(f"version {wire_version}")
        self.fronts.add(front)
        try:
            while True:
                yield encode([Begun((front, "x" * 10_000))])
                await asyncio.sleep(0)
        finally:
            self.fronts.remove(front)

    def deliver(self, front: str, data: bytes) -> None:
        self.heard += read_to_replica(data)


def run(
    test: Callable[[Replica, ReplicaDoor, Address], Coroutine[Any, Any, None]],
    replica: Replica | None = None,
) -> None:
    """With a door. Whatever asyncio would only log is a failure."""
    faults: list[dict[str, Any]] = []

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, fault: faults.append(fault))
        here = replica or Replica()
        door = ReplicaDoor(here)  # type: ignore[arg-type]
        where = await door.open("127.0.0.1")
        try:
            await asyncio.wait_for(test(here, door, where), 100)
        finally:
            await door.close()
        assert not door._visits
        assert not here.fronts

    asyncio.run(limited())
    gc.collect()  # tasks and sockets that were left tell so
    assert faults == []


async def first(channel: DoorChannel) -> object:
    """The first message, after which the front leaves."""
    stream = channel.messages()
    try:
        return await anext(stream)
    finally:
        await stream.aclose()  # type: ignore[attr-defined]


async def say(where: Address, data: bytes) -> bytes:
    """What comes after the door's random bytes if somebody says this."""
    reader, writer = await asyncio.open_connection(where.host, where.port)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer[module.CHALLENGE_BYTES :]


def test_messages_cross_and_a_door_closes_in_the_middle_of_them() -> None:
    async def test(replica: Replica, door: ReplicaDoor, where: Address) -> None:
        assert where.secret not in repr(where)
        channel = DoorChannel("replica", where, "front")
        channel.send(Abort("dropped"))  # there is no connection yet
        num = 0
        async for message in channel.messages():
            assert message == Begun(("front", "x" * 10_000))
            num += 1
            if num == 1:
                channel.send(Abort("a"), Abort("b", 1))
            if replica.heard:
                await door.close()
        assert replica.heard == [Abort("a"), Abort("b", 1)]
        # Nor does anybody answer later.
        assert [message async for message in channel.messages()] == []

    run(test)


def test_a_front_that_does_not_read_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.05)

    async def test(replica: Replica, door: ReplicaDoor, where: Address) -> None:
        stream = DoorChannel("replica", where, "front").messages()
        await anext(stream)
        await asyncio.sleep(0.1)  # the replica fills what lies between
        await door.close()
        await stream.aclose()  # type: ignore[attr-defined]

    run(test)


def test_strangers_are_not_let_in(caplog: pytest.LogCaptureFixture) -> None:
    async def test(replica: Replica, door: ReplicaDoor, where: Address) -> None:
        guess = DoorChannel("replica", replace(where, secret="guessed"), "x")
        with caplog.at_level(logging.WARNING, "loire.fleet"):
            assert [message async for message in guess.messages()] == []
            for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 10**6, where.secret.encode()):
                try:
                    assert await say(where, said) == b""
                except ConnectionError:
                    assert len(said) == 10**6, "closed before all of it was read"
        assert len(caplog.records) == 1, "once a minute"
        assert where.secret not in caplog.text
        assert door._num_refused == 5
        # What one connection was told is worth nothing in another one.
        recorded: list[bytes] = []
        proof = module._proof

        def record(*args: Any) -> bytes:
            recorded.append(proof(*args))
            return recorded[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_proof", record)
            await first(DoorChannel("replica", where, "front"))
        for said in recorded:
            assert await say(where, secrets.token_bytes(32) + said) == b""

    run(test)


def test_a_front_of_another_version_is_told_so() -> None:
    async def test(replica: Replica, door: ReplicaDoor, where: Address) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "WIRE_VERSION", 0)
            assert await first(DoorChannel("replica", where, "old")) == Lost("version 0")
        for said in (framed(b"nothing"), b"\xff" * 100):
            # It knows the secret, and talks nonsense.
            reader, writer = await DoorChannel("replica", where, "x")._connect()
            writer.write(said)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    run(test)


def test_waiting_strangers_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STRANGERS", 3)

    async def test(replica: Replica, door: ReplicaDoor, where: Address) -> None:
        waiting = [await asyncio.open_connection(where.host, where.port) for _ in range(3)]
        for reader, _ in waiting:
            await reader.readexactly(module.CHALLENGE_BYTES)
        assert await first(DoorChannel("replica", where, "front")) is not None
        assert await waiting[0][0].read() == b"", "the oldest was left"
        assert len(door._strangers) == 2
        monkeypatch.setattr(module, "HELLO_S", 0.05)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        assert len(await reader.read()) == module.CHALLENGE_BYTES, "and who says nothing for long"
        for _, each in [*waiting, (reader, writer)]:
            each.close()
            await each.wait_closed()

    run(test)


def test_a_replica_that_falls_silent_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_S", 0.01)

    class Silent(Replica):
        async def attach(self, front: str, wire_version: int) -> AsyncGenerator[bytes, None]:
            yield encode([Begun((front,))])
            await asyncio.Event().wait()

    async def test(replica: Replica, door: ReplicaDoor, where: Address) -> None:
        messages = DoorChannel("replica", where, "front", timeout_s=0.1).messages()
        told = [message async for message in messages]
        assert told == [Begun(("front",)), Lost("it gave no sign of life for 0.1 s")]

    run(test, Silent())


def test_streams_go_on_while_a_process_is_stopped() -> None:
    """It moves again with what it had to say: nothing comes twice."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "support.replica_process"]
    pipe = subprocess.PIPE
    processes = {
        name: subprocess.Popen([*command, name], env=environment, stdin=pipe, stdout=pipe)
        for name in "ab"
    }

    async def follow(fleet: FakeFleet, name: str, where: Address) -> None:
        while True:
            await fleet.link.follow(DoorChannel(name, where, fleet.link.name, timeout_s=1.0))
            await asyncio.sleep(0.05)

    async def until_joined(fleet: FakeFleet) -> None:
        while len(fleet.link.replicas) < 2:
            await asyncio.sleep(0.01)

    async def play() -> None:
        fleet = FakeFleet()
        following = []
        for name, process in processes.items():
            assert process.stdout is not None
            where = Address(*json.loads(await asyncio.to_thread(process.stdout.readline)))
            following.append(asyncio.create_task(follow(fleet, name, where)))
        await until_joined(fleet)
        fleet.submit("r", max_tokens=200, min_tokens=199)
        while len(fleet.tokens.get(("r", 0), ())) < 20:
            await asyncio.sleep(0.001)
        [busy] = [name for name in "ab" if fleet.link.num_requests_of(name)]
        processes[busy].send_signal(signal.SIGSTOP)
        while fleet.link.num_requests:
            await asyncio.sleep(0.01)
        assert fleet.link.num_moves >= 1
        processes[busy].send_signal(signal.SIGCONT)
        await until_joined(fleet)
        for number in range(4):
            fleet.submit(f"r{number}")
        while fleet.link.num_requests:
            await asyncio.sleep(0.01)
        fleet.check()
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await fleet.close()

    try:
        asyncio.run(asyncio.wait_for(play(), 200))
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def test_a_front_tells_nothing_to_who_does_not_know_the_secret() -> None:
    async def test(replica: Replica, door: ReplicaDoor, where: Address) -> None:
        heard = bytearray()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(secrets.token_bytes(64))
            heard.extend(await reader.read())
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        channel = DoorChannel("replica", replace(where, port=port), "front")
        with pytest.raises(WireError, match="does not know its secret"):
            await first(channel)
        server.close()
        assert len(heard) == module.CHALLENGE_BYTES + module.PROOF_BYTES

    run(test)
