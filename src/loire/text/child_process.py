"""Processes that do foreign work under limits: messages to and from them, with deadlines.

A message is a length of four bytes and so many bytes.
"""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import threading
import time

from loire.base.python_process import python_command, python_environment
from loire.base.signals import held_back

LENGTH_BYTES = 4
PIPE_BYTES = 1 << 20


class ChildError(Exception):
    """The process ended, or did not answer in time. signal: what killed it; 0 if nothing did."""

    def __init__(self, reason: str, signal_number: int = 0) -> None:
        super().__init__(reason)
        self.signal = signal_number


class ChildProcess:
    """A module that runs as a program in a process of its own, and reads and writes messages.

    It begins with SIGINT held back, and is to leave it to this one: Ctrl-C is for whoever waits.
    One thread may send while another receives.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        with held_back(signal.SIGINT):
            self._process = subprocess.Popen(
                python_command(module, *arguments),
                env=python_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._writing = threading.RLock()
        """Held by who writes, and who closes: a closed descriptor's number may be another file."""
        for descriptor in (self._to, self._from):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(AttributeError, OSError):  # where pipes can be widened
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def send(self, message: bytes, deadline: float) -> None:
        """Write a message. Raises ChildError; then the process has ended."""
        rest = memoryview(len(message).to_bytes(LENGTH_BYTES, "big") + message)
        with self._writing:
            self._send(rest, deadline)

    def _send(self, rest: memoryview, deadline: float) -> None:
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            raise ChildError("its process has ended")
        try:
            while rest:
                self._wait(self._to, select.POLLOUT, deadline)
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(self._to, rest) :]
        except BrokenPipeError as error:
            raise self._ending() from error
        except BaseException:
            self.end()
            raise

    def receive(self, deadline: float | None) -> bytes:
        """Read a message; deadline: by the monotonic clock. Raises ChildError as send() does."""
        try:
            length = int.from_bytes(self._read(LENGTH_BYTES, deadline), "big")
            return bytes(self._read(length, deadline))
        except BaseException:
            self.end()
            raise

    def kill(self) -> None:
        """Have the process end, for a thread that still reads its messages: it gets ChildError."""
        self._process.kill()

    def end(self) -> None:
        """End the process, if nobody has."""
        self._process.kill()
        self._process.wait()
        with self._writing:
            for file in (self._process.stdin, self._process.stdout):
                assert file is not None
                with contextlib.suppress(OSError):
                    file.close()

    def _read(self, length: int, deadline: float | None) -> bytearray:
        data = bytearray()
        while len(data) < length:
            self._wait(self._from, select.POLLIN, deadline)
            try:
                piece = os.read(self._from, min(length - len(data), PIPE_BYTES))
            except BlockingIOError:
                continue
            if not piece:
                raise self._ending()
            data += piece
        return data

    def _wait(self, descriptor: int, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(left):
            raise ChildError("it did not answer in time", signal.SIGPROF)

    def _ending(self) -> ChildError:
        """Why the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode or 0
        self.end()
        return ChildError(f"its process ended with code {code}", max(0, -code))
