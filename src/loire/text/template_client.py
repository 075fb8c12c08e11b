"""The other end of the process in which templates run: starts it, asks it, ends it."""

import contextlib
import fcntl
import json
import marshal
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from loire.base.errors import CheckpointError, RequestError
from loire.base.python_process import python_command, python_environment

MAX_SECONDS = 5.0
"""Of processor time for one request."""
PATIENCE = 6
"""Times MAX_SECONDS that a request may take by the clock, on a machine that is busy."""

_LENGTH_BYTES = 4
PIPE_BYTES = 1 << 20


class TemplateClient:
    """Templates in a process of their own. It is started at once and used when it is ready.

    Whatever a request does there, it ends: in an answer, or in an error after MAX_SECONDS of
    processor time. A process that ended is replaced. Safe for threads; they take turns.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._opening = ("open", dict(sources), dict(special_tokens))
        self._turn = threading.Lock()
        self._child: _Child | None = None
        self._finalizer = weakref.finalize(self, lambda: None)
        self._start()

    def variables(self) -> frozenset[str]:
        """What the templates read beside what they are always given.

        Raises CheckpointError if they are no valid Jinja, or cannot be compiled within the limits.
        """
        with self._turn:
            return frozenset(json.loads(self._opened()))

    def ask(self, *request: Any) -> str:
        """The answer to a request. Raises RequestError if there is none."""
        try:
            data = _encoded(request)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"messages hold something that is no JSON: {error}") from error
        with self._turn:
            self._opened()
            assert self._child is not None
            try:
                kind, text = self._child.exchange(data, _deadline())
            except _ChildError as error:
                self._start()
                raise RequestError(_refused(str(error)), param="messages") from error
        if kind != b"D":
            raise RequestError(_refused(text), param="messages")
        return text

    def close(self) -> None:
        """End the process; another request would start one again."""
        self._finalizer()
        self._child = None

    def _start(self) -> None:
        self._finalizer()
        self._child = child = _Child(_encoded(self._opening))
        self._finalizer = weakref.finalize(self, child.end)

    def _opened(self) -> str:
        """What a process answers that has compiled the templates."""
        if self._child is None or self._child.has_ended:
            self._start()
        assert self._child is not None
        try:
            kind, text = self._child.opened(_deadline())
        except _ChildError as error:
            self.close()
            raise CheckpointError(f"the chat template cannot be compiled: {error}") from error
        if kind != b"D":
            raise CheckpointError(f"the chat template {text}")
        return text


class _ChildError(Exception):
    """The process ended, or did not answer in time."""


class _Child:
    """One process; its first request is sent when it starts, by whoever asks first."""

    def __init__(self, opening: bytes) -> None:
        self._process = subprocess.Popen(
            python_command("loire.text.template_process", str(MAX_SECONDS)),
            env=python_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._to, self._from):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(AttributeError, OSError):  # where pipes can be widened
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._opening = opening
        self._answer: tuple[bytes, str] | None = None

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def opened(self, deadline: float) -> tuple[bytes, str]:
        """The answer to the first request."""
        if self._answer is None:
            self._answer = self.exchange(self._opening, deadline)
            self._opening = b""
        return self._answer

    def exchange(self, request: bytes, deadline: float) -> tuple[bytes, str]:
        """Kind and text of the answer. Raises _ChildError; then the process has ended."""
        try:
            self._write(len(request).to_bytes(_LENGTH_BYTES, "big") + request, deadline)
            length = int.from_bytes(self._read(_LENGTH_BYTES, deadline), "big")
            data = self._read(length, deadline)
        except BaseException:
            self.end()
            raise
        return bytes(data[:1]), data[1:].decode("utf-8", "surrogatepass")

    def end(self) -> None:
        """End the process, if nobody has."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            assert file is not None
            with contextlib.suppress(OSError):
                file.close()

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._to, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._to, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise _ChildError(self._ending()) from error

    def _read(self, length: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < length:
            self._wait(self._from, select.POLLIN, deadline)
            try:
                piece = os.read(self._from, min(length - len(data), 1 << 20))
            except BlockingIOError:
                continue
            if not piece:
                raise _ChildError(self._ending())
            data += piece
        return data

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _ChildError(f"it ran for more than {MAX_SECONDS * PATIENCE:g} seconds")

    def _ending(self) -> str:
        """Why the process ended, in words about the template."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its process closed its pipes"
        if code == -signal.SIGPROF:
            return f"it ran for more than {MAX_SECONDS:g} seconds"
        return f"its process ended with code {code}"


def _encoded(request: Any) -> bytes:
    try:
        return marshal.dumps(request)
    except ValueError:  # there is more in it than plain values, such as a mapping of another class
        return marshal.dumps(json.loads(json.dumps(request, default=_plain)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def _deadline() -> float:
    return time.monotonic() + MAX_SECONDS * PATIENCE


def _refused(reason: str) -> str:
    return f"the model's chat template does not accept these messages: {reason}"
