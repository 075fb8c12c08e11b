"""The other end of the process in which templates run: starts it, asks it, ends it."""

import json
import marshal
import signal
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from loire.base.errors import CheckpointError, RequestError
from loire.text.child_process import ChildError, ChildProcess

MAX_SECONDS = 5.0
"""Of processor time for one request."""
PATIENCE = 6
"""Times MAX_SECONDS that a request may take by the clock, on a machine that is busy."""

_DONE = b"D"
"""Begins an answer; what else begins one says what is wrong (template_process.py)."""


class TemplateClient:
    """Templates in a process of their own. It is started at once and used when it is ready.

    Whatever a request does there, it ends: in an answer, or in an error after MAX_SECONDS of
    processor time. A process that ended is replaced. Safe for threads; they take turns.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._opening = ("open", dict(sources), dict(special_tokens))
        self._turn = threading.Lock()
        self._child: ChildProcess | None = None
        self._variables: str | None = None
        """What the process answered when it had compiled the templates."""
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
            try:
                kind, text = self._exchange(data)
            except ChildError as error:
                self._start()
                raise RequestError(_refused(_why(error)), param="messages") from error
        if kind != _DONE:
            raise RequestError(_refused(text), param="messages")
        return text

    def close(self) -> None:
        """End the process; another request would start one again."""
        self._finalizer()
        self._child = None

    def _start(self) -> None:
        self._finalizer()
        self._variables = None
        self._child = child = ChildProcess("loire.text.template_process", str(MAX_SECONDS))
        self._finalizer = weakref.finalize(self, child.end)

    def _opened(self) -> str:
        """What a process answers that has compiled the templates."""
        if self._child is None or self._child.has_ended:
            self._start()
        if self._variables is not None:
            return self._variables
        try:
            kind, text = self._exchange(_encoded(self._opening))
        except ChildError as error:
            self.close()
            raise CheckpointError(f"the chat template cannot be compiled: {_why(error)}") from error
        if kind != _DONE:
            raise CheckpointError(f"the chat template {text}")
        self._variables = text
        return text

    def _exchange(self, request: bytes) -> tuple[bytes, str]:
        """Kind and text of the answer. Raises ChildError; then the process has ended."""
        assert self._child is not None
        deadline = time.monotonic() + MAX_SECONDS * PATIENCE
        self._child.send(request, deadline)
        answer = self._child.receive(deadline)
        return answer[:1], answer[1:].decode("utf-8", "surrogatepass")


def _why(error: ChildError) -> str:
    if error.signal == signal.SIGPROF:  # the system's alarm, or ours
        return f"it ran for more than {MAX_SECONDS:g} seconds"
    return str(error)


def _encoded(request: Any) -> bytes:
    try:
        return marshal.dumps(request)
    except ValueError:  # there is more in it than plain values, such as a mapping of another class
        return marshal.dumps(json.loads(json.dumps(request, default=_plain)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def _refused(reason: str) -> str:
    return f"the model's chat template does not accept these messages: {reason}"
