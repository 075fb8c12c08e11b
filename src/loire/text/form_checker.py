"""Checks constraints before their requests are queued, in a process of its own."""

import contextlib
import marshal
import threading
import time
import weakref
from collections import OrderedDict
from concurrent.futures import Future, TimeoutError
from dataclasses import fields

from loire.base.errors import BusyError, EngineError, RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.text.child_process import ChildError, ChildProcess
from loire.text.form_turns import FormTurns, NobodyWaitsError
from loire.text.grammar import TokenTable
from loire.text.tokenizer import Tokenizer

MAX_KEPT = 256
"""Results that are kept, the latest used ones."""
PATIENCE_S = 300.0
"""By the clock, which goes on while others have the processor; what compiling costs is bounded by
processor time. Whoever waits that long is sent away, and nobody else."""


class FormChecker:
    """Says whether constraints can be compiled, at a bounded cost. Safe for threads.

    The process is started with the first constraint, or by prepare().
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: OrderedDict[StructuredOutputs, str] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = FormTurns()
        self._link: _Link | None = None

    def check(
        self,
        spec: StructuredOutputs,
        share: str = "",
        abandoned: "Future[None] | None" = None,
    ) -> None:
        """Raise RequestError if the constraint is wrong, too large, or not supported.

        share: whose constraints take turns with one another, such as a tenant's. abandoned: done
        as soon as nobody waits for the answer; then it ends at once, and so does the compilation.
        Raises BusyError if too many of the share wait, or for too long, EngineError if processes
        die of the constraint.
        """
        if not self._tokenizer.eos_token_ids:
            raise RequestError(
                "structured_outputs needs a model with an end-of-sequence token, but this one "
                "names none",
                param="structured_outputs",
            )
        reason = self._find(spec)
        if reason is None:
            with self._turns.turn(share, abandoned):
                reason = self._find(spec)  # it may have been asked meanwhile
                if reason is None:
                    reason = self._ask(spec, abandoned)
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

    def _ask(self, spec: StructuredOutputs, abandoned: "Future[None] | None") -> str:
        """What is wrong with it. Where the process ends meanwhile, that may be due to what others
        asked: it is asked again, in a process of its own."""
        with contextlib.suppress(ChildError):
            return self._running().ask(spec, abandoned)
        try:
            alone = _Link(self._tokenizer)
            try:
                return alone.ask(spec, abandoned)
            finally:
                alone.close()
        except ChildError as error:
            raise EngineError(
                f"structured_outputs.{spec.kind} could not be checked: {error}"
            ) from error

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

    def ask(self, spec: StructuredOutputs, abandoned: "Future[None] | None" = None) -> str:
        """What is wrong with a constraint; nothing if it compiles.

        Raises NobodyWaitsError, BusyError if the answer takes too long, ChildError if the process
        ends.
        """
        future: Future[str] = Future()
        values = {field.name: getattr(spec, field.name) for field in fields(spec)}
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._waiting[number] = future
            self._child.send(marshal.dumps((number, values)), _soon())
        if abandoned is not None:
            abandoned.add_done_callback(lambda _: self._abandon(number))
        try:
            return self._answer(number, future, spec.kind)
        except (NobodyWaitsError, BusyError):
            with self._lock, contextlib.suppress(ChildError):
                self._child.send(marshal.dumps((number, None)), _soon())
            raise

    def _answer(self, number: int, future: "Future[str]", kind: str) -> str:
        try:
            return future.result(PATIENCE_S)
        except TimeoutError as error:
            if self._waiting.pop(number, None) is None:  # the answer comes at this moment
                return future.result()
            raise BusyError(
                f"structured_outputs.{kind} was not compiled within {PATIENCE_S:g} s, as others "
                f"compute: send it again when there is less load, or simplify it"
            ) from error

    def _abandon(self, number: int) -> None:
        """On any thread: the one that waits tells the process."""
        future = self._waiting.pop(number, None)
        if future is not None:
            future.set_exception(NobodyWaitsError())


def _read(child: ChildProcess, waiting: dict[int, "Future[str]"]) -> None:
    try:
        while True:
            answer = child.receive(None)
            future = waiting.pop(int.from_bytes(answer[:4], "big"), None)
            if future is not None:  # else nobody waits for it any more
                future.set_result(answer[4:].decode("utf-8", "ignore"))  # it may be cut
    except (ChildError, OSError, ValueError) as error:
        reason = ChildError(f"the process that checks ended ({error})")
    while waiting:
        waiting.popitem()[1].set_exception(reason)


def _soon() -> float:
    return time.monotonic() + PATIENCE_S
