"""The way between fronts and a replica: a TCP connection for each front, frames of messages in it.

Ray, or whoever keeps the replica, tells fronts its address and a secret. The secret never crosses
here: each side proves that it knows it, by an HMAC of random bytes of both (SHA-256), before
anything else is read or said. What crosses then is checked msgpack of token ids
(loire.fleet.messages). It is neither encrypted nor signed: whoever can read the network reads it,
and whoever can change it changes it.

    replica:  32 random bytes
    front:    32 random bytes, the front's proof
    replica:  its proof
    front:    who it is; from here on both send frames
"""

import asyncio
import hmac
import logging
import math
import secrets
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from loire.base.errors import EngineError
from loire.engine.pulse import MOST_SILENCE_S, Pulse
from loire.engine.wire import FrameReader, WireError, framed
from loire.fleet.messages import (
    WIRE_VERSION,
    FromReplica,
    Lost,
    ToReplica,
    encode,
    read_from_replica,
)
from loire.fleet.replica import EngineReplica

log = logging.getLogger("loire.fleet")

RECEIVE_BYTES = 2**16
SECRET_BYTES = CHALLENGE_BYTES = PROOF_BYTES = 32
HELLO_S = 10.0
"""For both sides, to prove who they are."""
CLOSE_S = 2.0
"""For the last words to leave. What the other side does not take by then is dropped."""
MAX_STRANGERS = 64
"""Connections that have proved nothing yet. One more ends the oldest: a front needs no longer than
the network's way there and back, so who only waits keeps none out."""
WARN_S = 60.0
"""Between two lines of the log about those who were not let in."""
SILENCE_S = 20
"""A machine that does not answer for so long is taken for gone."""


@dataclass(frozen=True)
class Address:
    """Where a replica lets fronts in."""

    host: str
    port: int
    secret: str = field(repr=False)


class _Hello(msgspec.Struct, frozen=True):
    """From a front, its first frame."""

    front: str
    wire_version: int


class ReplicaDoor:
    """Lets fronts in to a replica."""

    def __init__(self, replica: EngineReplica) -> None:
        self._replica = replica
        self._secret = secrets.token_hex(SECRET_BYTES)
        self._visits: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], None] = {}
        """Visits that have proved nothing yet, the oldest first."""
        self._server: asyncio.Server | None = None
        self._closed = False
        self._warned_s = -math.inf
        self._num_refused = 0

    async def open(self, host: str) -> Address:
        """Listen on an address of this machine, at a port that is free."""
        self._server = await asyncio.start_server(self._come, host, 0)
        port = self._server.sockets[0].getsockname()[1]
        return Address(host, port, self._secret)

    async def close(self) -> None:
        """End all visits, and let nobody in any more."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)

    def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: of that asyncio makes the task, and before Python 3.12 asks it for its
        # exception even where it was cancelled.
        if self._closed:  # it was accepted just before
            writer.transport.abort()
            return
        if len(self._strangers) >= MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.cancel()
        visit = asyncio.create_task(self._visit(reader, writer))
        self._visits.add(visit)
        self._strangers[visit] = None

        def end(visit: "asyncio.Task[None]") -> None:
            self._visits.discard(visit)
            self._strangers.pop(visit, None)
            writer.transport.abort()  # if it was cancelled before it began

        visit.add_done_callback(end)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await self._knows_secret(reader, writer):
                async with aclosing(_frames(reader)) as frames:
                    hello = await asyncio.wait_for(_first(frames), HELLO_S)
                    if hello is not None:
                        await self._serve(hello, frames, writer)
        except (OSError, WireError, asyncio.TimeoutError) as error:
            log.info("a front was left: %r", error)
        except Exception:
            log.exception("a front was left")
        finally:
            await _end(writer)

    async def _knows_secret(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        visit = asyncio.current_task()
        assert visit is not None
        try:
            _keep_alive(writer)
            await asyncio.wait_for(_check_front(reader, writer, self._secret), HELLO_S)
        except (OSError, EOFError, WireError, asyncio.TimeoutError) as error:
            self._warn(writer, error)
            return False
        self._strangers.pop(visit, None)
        return True

    def _warn(self, writer: asyncio.StreamWriter, error: Exception) -> None:
        """Whoever reaches the port can bring this about, as often as they like."""
        self._num_refused += 1
        now_s = time.monotonic()
        if now_s - self._warned_s >= WARN_S:
            self._warned_s = now_s
            peer = writer.get_extra_info("peername")
            log.warning("%s was not let in: %r (%d in all)", peer, error, self._num_refused)

    async def _serve(
        self, hello: _Hello, frames: AsyncIterator[bytes], writer: asyncio.StreamWriter
    ) -> None:
        """Until one of the two sides ends."""
        tasks = [
            asyncio.create_task(self._tell(hello, writer)),
            asyncio.create_task(self._hear(hello.front, frames)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, EngineError):
                log.error("%s", outcome)
                writer.write(framed(encode([Lost(str(outcome))])))
            elif isinstance(outcome, Exception):
                raise outcome

    async def _tell(self, hello: _Hello, writer: asyncio.StreamWriter) -> None:
        async with aclosing(self._replica.attach(hello.front, hello.wire_version)) as stream:
            async for data in stream:
                writer.write(framed(data))
                await writer.drain()

    async def _hear(self, front: str, frames: AsyncIterator[bytes]) -> None:
        async for body in frames:
            self._replica.deliver(front, body)


class DoorChannel:
    """A front's connection to a replica: a ReplicaChannel.

    timeout_s: a replica from which nothing comes for that long, not even a sign of life, is lost.
    """

    def __init__(
        self, name: str, address: Address, front: str, timeout_s: float = MOST_SILENCE_S
    ) -> None:
        self.name = name
        self._address = address
        self._front = front
        self._timeout_s = timeout_s
        self._writer: asyncio.StreamWriter | None = None

    def send(self, *messages: ToReplica) -> None:
        """See ReplicaChannel."""
        if self._writer is not None:
            # Each in a frame of its own: one was found to fit, many long prompts may not.
            self._writer.writelines([framed(encode([message])) for message in messages])

    async def messages(self) -> AsyncIterator[FromReplica]:
        """See ReplicaChannel. Ends when the connection does; with Lost, if the replica is silent.
        Raises WireError for what is none, and if whoever answers there is not the replica."""
        try:
            reader, writer = await asyncio.wait_for(self._connect(), HELLO_S)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            log.info("replica %s cannot be reached: %r", self.name, error)
            return
        self._writer = writer
        silent_s = 0.0

        def give_up(seconds: float) -> None:
            nonlocal silent_s
            silent_s = seconds
            writer.transport.abort()

        pulse = Pulse(self._timeout_s, give_up)
        pulse.start()
        try:
            writer.write(framed(msgspec.msgpack.encode(_Hello(self._front, WIRE_VERSION))))
            async with aclosing(_frames(reader, pulse.heard)) as frames:
                async for body in frames:
                    for message in read_from_replica(body):
                        yield message
        except OSError as error:
            log.info("replica %s: %s", self.name, error)
        finally:
            pulse.stop()
            self._writer = None
            await _end(writer)
        if silent_s:
            yield Lost(f"it gave no sign of life for {silent_s:g} s")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        where = self._address
        reader, writer = await asyncio.open_connection(where.host, where.port)
        try:
            _keep_alive(writer)
            await _check_replica(reader, writer, where.secret)
        except BaseException:
            await _end(writer)
            raise
        return reader, writer


async def _check_front(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str
) -> None:
    """The replica's part. Raises WireError if the other side does not know the secret, EOFError."""
    ours = secrets.token_bytes(CHALLENGE_BYTES)
    writer.write(ours)
    answer = await reader.readexactly(CHALLENGE_BYTES + PROOF_BYTES)
    theirs, proof = answer[:CHALLENGE_BYTES], answer[CHALLENGE_BYTES:]
    if not hmac.compare_digest(proof, _proof(secret, "front", ours, theirs)):
        raise WireError("it does not know the secret")
    writer.write(_proof(secret, "replica", ours, theirs))


async def _check_replica(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str
) -> None:
    """The front's part. Raises WireError if the other side does not know the secret, EOFError."""
    theirs = await reader.readexactly(CHALLENGE_BYTES)
    ours = secrets.token_bytes(CHALLENGE_BYTES)
    writer.write(ours + _proof(secret, "front", theirs, ours))
    proof = await reader.readexactly(PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(secret, "replica", theirs, ours)):
        raise WireError("whoever answers at the replica's address does not know its secret")


def _proof(secret: str, side: str, replicas: bytes, fronts: bytes) -> bytes:
    """That a side knows the secret, given both sides' random bytes."""
    return hmac.digest(secret.encode(), f"loire {side}".encode() + replicas + fronts, "sha256")


async def _end(writer: asyncio.StreamWriter) -> None:
    """Close a connection."""
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), CLOSE_S)
    except OSError:
        pass  # it was broken
    except asyncio.TimeoutError:
        writer.transport.abort()


async def _first(frames: AsyncIterator[bytes]) -> _Hello | None:
    """What a front says first; None if it goes before. Raises WireError for anything else."""
    async for body in frames:
        try:
            return msgspec.msgpack.decode(body, type=_Hello)
        except (msgspec.DecodeError, ValueError) as error:
            raise WireError(f"it began with {len(body):,} bytes that are no hello") from error
    return None


async def _frames(
    reader: asyncio.StreamReader, heard: Callable[[], None] = lambda: None
) -> AsyncGenerator[bytes, None]:
    """The bodies of frames, until the other side closes. heard: told of all that comes. Raises
    OSError, WireError."""
    cutter = FrameReader()
    while data := await reader.read(RECEIVE_BYTES):
        heard()
        for body in cutter.feed(data):
            yield body


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Notice machines that have gone without a word."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", SILENCE_S // 2),
        ("TCP_KEEPINTVL", SILENCE_S // 4),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", SILENCE_S * 1000),
    ):
        if hasattr(socket, name):  # by platform
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
