"""One life of the engine's process, seen from the supervisor: start, messages both ways, end."""

import asyncio
import logging
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loire.base.python_process import python_command, python_environment
from loire.base.signals import held_back
from loire.engine.wire import (
    FrameReader,
    FromEngine,
    WireError,
    read_from_engine,
)

log = logging.getLogger("loire.engine")

COMMAND = tuple(python_command("loire.engine.worker"))
NUM_LAST_LINES = 20
MAX_LINE_BYTES = 2**16
SEND_BUFFER_BYTES = 2**20
"""The engine goes on that far while the supervisor's loop is busy."""
CLOSE_S = 5.0
LOG_END_S = 1.0


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that was started, and our end of its socket; nobody talks to it yet."""

    process: "subprocess.Popen[bytes]"
    connection: socket.socket
    since_s: float
    """Monotonic time of its start."""

    def abandon(self) -> None:
        """End it, if nobody has."""
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def launch(command: Sequence[str] = COMMAND) -> Launched:
    """Start a process; the number of its socket is appended to the command.

    It may be done before there is an event loop, so that the engine imports what it needs in the
    meantime.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        number = theirs.fileno()
        since_s = time.monotonic()
        # In the supervisor's session: Linux weighs the processes of a session by how nice they are,
        # but sessions alike (autogroups), so that what compiles constraints would take a half.
        with held_back(signal.SIGINT, signal.SIGTERM):
            process = subprocess.Popen(
                [*command, str(number)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=python_environment(),
                pass_fds=(number,),
            )
    ours.setblocking(False)
    return Launched(process, ours, since_s)


class EngineProcess:
    """A running process; make it with attach(). Used on one event loop."""

    def __init__(self, launched: Launched, on_message: Callable[[FromEngine], None]) -> None:
        self.since_s = launched.since_s
        self.last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
        """What it wrote to stderr last."""
        self._process = launched.process
        self._connection = _Connection(on_message, self.kill)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._log_ended = threading.Event()
        for work, name in ((self._read_log, "loire-log"), (self._wait, "loire-wait")):
            threading.Thread(target=work, name=name, daemon=True).start()

    @classmethod
    async def attach(
        cls, launched: Launched, on_message: Callable[[FromEngine], None]
    ) -> "EngineProcess":
        """Take over a process that was launched."""
        self = cls(launched, on_message)
        self._transport, _ = await self._loop.create_unix_connection(
            lambda: self._connection, sock=launched.connection
        )
        return self

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def send(self, *frames: bytes) -> None:
        """Send messages together."""
        assert self._transport is not None
        # Otherwise it has died: wait() tells, and what was to be sent goes to the next one.
        if not self._transport.is_closing():
            self._transport.writelines(frames)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    async def wait(self) -> str:
        """Wait for its end; how it ended, in words. All of its messages have been given out."""
        await self._end.wait()
        await self._connection.closed.wait()
        status = self._process.returncode
        return f"killed by signal {-status}" if status < 0 else f"exit status {status}"

    async def close(self) -> None:
        """Hang up, which ends it at once; kill it if it does not."""
        assert self._transport is not None
        self._transport.abort()
        try:
            await asyncio.wait_for(self._end.wait(), CLOSE_S)
        except asyncio.TimeoutError:
            log.warning(
                "the engine's process %d did not end in %g s: killing it", self.pid, CLOSE_S
            )
            self.kill()
            await self._end.wait()

    def _wait(self) -> None:
        """On a thread of its own: tell the loop when the process has ended."""
        self._process.wait()
        # Let the last lines come; not for ever, as a process that it started may hold the pipe.
        self._log_ended.wait(LOG_END_S)
        try:
            self._loop.call_soon_threadsafe(self._end.set)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _read_log(self) -> None:
        """On a thread of its own: log what the process writes to stderr, to its end."""
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                self._log_line(line)
        self._log_ended.set()

    def _log_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self.last_lines.append(text)
        log.info("engine: %s", text)


class _Connection(asyncio.Protocol):
    """The supervisor's end of the socket."""

    def __init__(
        self, on_message: Callable[[FromEngine], None], on_nonsense: Callable[[], None]
    ) -> None:
        self.closed = asyncio.Event()
        self._on_message = on_message
        self._on_nonsense = on_nonsense
        self._reader = FrameReader()

    def data_received(self, data: bytes) -> None:
        """Give out the messages that are complete now."""
        try:
            for body in self._reader.feed(data):
                self._on_message(read_from_engine(body))
        except WireError as error:
            log.error("%s; killing the engine that sent it", error)
            self._on_nonsense()

    def connection_lost(self, error: Exception | None) -> None:
        """Nothing more will come."""
        self.closed.set()
