"""Checks constraints before their requests are queued, in a process of its own."""

import marshal
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager
from dataclasses import fields

from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.text.child_process import ChildError, ChildProcess
from loire.text.grammar import TokenTable
from loire.text.tokenizer import Tokenizer

MAX_KEPT = 256
"""Results that are kept, the latest used ones."""
MAX_AT_ONCE = 2
"""Constraints that are compiled at the same time; of one share, one."""
MAX_WAITING = 16
"""Constraints of one share that wait for their turn."""
PATIENCE_S = 60.0
"""By the clock; what compiling costs is bounded by processor time."""


class FormChecker:
    """Says whether constraints can be compiled, at a bounded cost. Safe for threads.

    The process is started with the first constraint, or by prepare().
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: OrderedDict[StructuredOutputs, str] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = _Turns()
        self._link: _Link | None = None

    def check(self, spec: StructuredOutputs, share: str = "") -> None:
        """Raise RequestError if the constraint is wrong, too large, or not supported.

        share: whose constraints take turns with one another, such as a tenant's.
        """
        if not self._tokenizer.eos_token_ids:
            raise RequestError(
                "structured_outputs needs a model with an end-of-sequence token, but this one "
                "names none",
                param="structured_outputs",
            )
        reason = self._find(spec)
        if reason is None:
            with self._turns.turn(share):
                reason = self._find(spec)  # it may have been asked meanwhile
                if reason is None:
                    reason = self._running().ask(spec)
                    self._keep(spec, reason)
        if reason:
            raise RequestError(reason, param="structured_outputs")

    def prepare(self) -> None:
        """Start the process, so that the first constraint does not wait for it."""
        self._running()

    def close(self) -> None:
        """End the process; another check would start one again."""
        with self._lock:
            if self._link is not None:
                self._link.close()
            self._link = None

    def _find(self, spec: StructuredOutputs) -> str | None:
        with self._lock:
            if spec in self._kept:
                self._kept.move_to_end(spec)
            return self._kept.get(spec)

    def _keep(self, spec: StructuredOutputs, reason: str) -> None:
        with self._lock:
            self._kept[spec] = reason
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    def _running(self) -> "_Link":
        with self._lock:
            if self._link is None or self._link.has_ended:
                self._link = _Link(self._tokenizer)
            return self._link


class _Link:
    """One life of the process, and a thread that reads its answers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._child = ChildProcess("loire.text.form_process")
        self._waiting: dict[int, Future[str]] = {}
        self._next = 0
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, self._child.kill)
        table = TokenTable.of(tokenizer)
        self._child.send(marshal.dumps(tuple(table)), _soon())
        arguments = (self._child, self._waiting)
        threading.Thread(target=_read, args=arguments, name="loire-forms", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        return self._child.has_ended

    def ask(self, spec: StructuredOutputs) -> str:
        """What is wrong with a constraint; nothing if it compiles. Raises RequestError."""
        future: Future[str] = Future()
        values = {field.name: getattr(spec, field.name) for field in fields(spec)}
        try:
            with self._lock:
                number, self._next = self._next, self._next + 1
                self._waiting[number] = future
                self._child.send(marshal.dumps((number, values)), _soon())
            return future.result(PATIENCE_S)
        except (ChildError, TimeoutError) as error:
            self.close()
            raise RequestError(
                f"structured_outputs.{spec.kind} could not be checked: {error}",
                param="structured_outputs",
            ) from error


def _read(child: ChildProcess, waiting: dict[int, "Future[str]"]) -> None:
    try:
        while True:
            answer = child.receive(None)
            waiting.pop(int.from_bytes(answer[:4], "big")).set_result(answer[4:].decode())
    except (ChildError, OSError, ValueError) as error:
        reason = ChildError(f"the process that checks ended ({error})")
    while waiting:
        waiting.popitem()[1].set_exception(reason)


class _Turns:
    """Who compiles: a few at a time, of each share one, and no crowd waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._active: set[str] = set()
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def turn(self, share: str) -> Iterator[None]:
        """Wait for a turn, and have it. Raises RequestError if too many of the share wait."""
        with self._changed:
            if self._waiting[share] >= MAX_WAITING:
                raise RequestError(
                    f"{MAX_WAITING} other constraints wait for their turn to be compiled, which "
                    f"is the most: send it again when some of them are answered",
                    param="structured_outputs",
                )
            self._waiting[share] += 1
            self._changed.wait_for(
                lambda: share not in self._active and len(self._active) < MAX_AT_ONCE
            )
            self._waiting[share] -= 1
            self._active.add(share)
        try:
            yield
        finally:
            with self._changed:
                self._active.remove(share)
                if not self._waiting[share]:
                    del self._waiting[share]
                self._changed.notify_all()


def _soon() -> float:
    return time.monotonic() + PATIENCE_S
