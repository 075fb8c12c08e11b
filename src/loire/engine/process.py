"""One life of the engine's process, seen from the supervisor: start, messages both ways, end."""

import asyncio
import contextlib
import logging
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence

from loire.engine.wire import (
    FrameReader,
    FromEngine,
    ToEngine,
    WireError,
    frame,
    read_from_engine,
)

log = logging.getLogger("loire.engine")

NUM_LAST_LINES = 20
SEND_BUFFER_BYTES = 2**20
"""The engine goes on that far while the supervisor's loop is busy."""
CLOSE_S = 5.0
LOG_END_S = 1.0


class EngineProcess:
    """A running process; make it with start(). Used on one event loop."""

    def __init__(self, process: Process, on_message: Callable[[FromEngine], None]) -> None:
        self.process = process
        self.last_lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
        """What it wrote to stderr last."""
        self._connection = _Connection(on_message, self.kill)
        self._transport: asyncio.Transport | None = None
        self._log = asyncio.create_task(self._read_log())

    @classmethod
    async def start(
        cls, command: Sequence[str], on_message: Callable[[FromEngine], None]
    ) -> "EngineProcess":
        """Start a command whose last argument will be the number of its socket."""
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            number = theirs.fileno()
            # A session of its own: Ctrl-C in a terminal is for the supervisor alone.
            process = await asyncio.create_subprocess_exec(
                *command,
                str(number),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=PIPE,
                pass_fds=(number,),
                start_new_session=True,
            )
        self = cls(process, on_message)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self._connection, sock=ours)
        return self

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self.process.pid

    def send(self, *messages: ToEngine) -> None:
        """Send messages together. Raises WireError if one cannot cross."""
        assert self._transport is not None
        data = b"".join(map(frame, messages))
        # Otherwise it has died: wait() tells, and what was to be sent goes to the next one.
        if not self._transport.is_closing():
            self._transport.write(data)

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def wait(self) -> str:
        """Wait for its end; how it ended, in words. All of its messages have been given out."""
        status = await self.process.wait()
        await self._connection.closed.wait()
        await self._end_of_log()
        return f"killed by signal {-status}" if status < 0 else f"exit status {status}"

    async def close(self) -> None:
        """Hang up, which ends it at once; kill it if it does not."""
        assert self._transport is not None
        self._transport.abort()
        try:
            await asyncio.wait_for(self.process.wait(), CLOSE_S)
        except asyncio.TimeoutError:
            log.warning(
                "the engine's process %d did not end in %g s: killing it", self.pid, CLOSE_S
            )
            self.kill()
            await self.process.wait()
        await self._end_of_log()

    async def _end_of_log(self) -> None:
        """Let the last lines come; not for ever, as a process that it started may hold the pipe."""
        await asyncio.wait({self._log}, timeout=LOG_END_S)
        self._log.cancel()

    async def _read_log(self) -> None:
        """Log what the process writes to stderr, to its end."""
        assert self.process.stderr is not None
        rest = b""
        while data := await self.process.stderr.read(2**16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._log_line(line)
            if len(rest) > 2**16:
                self._log_line(rest)
                rest = b""
        if rest:
            self._log_line(rest)

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
