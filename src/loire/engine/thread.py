"""The engine on a thread of its own, for callers that must not wait for a step."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from loire.base.errors import EngineError
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.step import StepRecord
from loire.engine.client import EngineClient
from loire.engine.core import EngineCore
from loire.engine.inbox import Inboxes
from loire.engine.start import Engine

Command = Callable[[EngineCore], object]


class EngineThread:
    """Runs an EngineCore; commands are carried out between steps, in order. An EngineLink.

    The callbacks are called on the engine's thread: on_step after each step, on_rest when commands
    left nothing to compute, on_failure when a step raised. Such a step ends all requests, and the
    engine takes others. Idle, it sleeps on a condition.
    """

    def __init__(
        self,
        core: EngineCore,
        on_step: Callable[[Sequence[SequenceUpdate]], None],
        on_failure: Callable[[EngineError], None],
        on_rest: Callable[[], None] = lambda: None,
    ) -> None:
        self.core = core
        self._on_step = on_step
        self._on_failure = on_failure
        self._on_rest = on_rest
        self._commands: deque[Command] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="loire-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        # A process that was forked has no such thread.
        return not self._stopping and self._thread.is_alive()

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running, as of its latest step."""
        return self.core.scheduler.num_requests

    @property
    def records(self) -> Sequence[StepRecord]:
        """What happened in the latest steps, oldest first."""
        return tuple(self.core.records)

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Queue requests, with no step between them. Raises EngineError if the engine stopped."""

        def add(core: EngineCore) -> None:
            for request in requests:
                core.add(request)

        if not self.send([add]):
            reason = "was closed" if self._stopping else "does not run in this process"
            raise EngineError(f"the engine {reason}: it takes no more requests")

    def abort(self, request_id: str) -> None:
        """End a request at the next step boundary, if it is in the engine."""
        self.send([lambda core: core.abort(request_id)])

    def abort_choice(self, request_id: str, choice: int) -> None:
        """End one completion at the next step boundary, if it is in the engine."""
        self.send([lambda core: core.abort_choice(request_id, choice)])

    def send(self, commands: Sequence[Command]) -> bool:
        """Have commands carried out, with no step between them; False if it does not run."""
        with self._wake:
            if not self.alive:
                return False
            self._commands += commands
            self._wake.notify()
            return True

    def close(self) -> None:
        """Stop after the step in progress. Unfinished requests get no further news."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        # Garbage may be collected, and an engine closed, on its own thread.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                try:
                    self._advance()
                except Exception as error:  # noqa: BLE001  whatever it was, clients must hear of it
                    self._fail(error)
        finally:
            self._stopping = True
            self.core.close()

    def _wait_for_work(self) -> bool:
        """Wait for something to do; False when stopping."""
        with self._wake:
            while not (self._commands or self.core.has_work or self._stopping):
                self._wake.wait()
            return not self._stopping

    def _advance(self) -> None:
        """Carry out what was sent, and take a step."""
        while self._commands:
            self._commands.popleft()(self.core)
        if self.core.has_work:
            self._on_step(self.core.step())
        else:
            self._on_rest()

    def _fail(self, error: Exception) -> None:
        """End all requests; if even that is not possible, so does the engine."""
        failure = EngineError(f"the engine's step failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        try:
            self.core.abort_all()
        finally:
            self._on_failure(failure)


def client_of(engine: Engine) -> EngineClient[EngineThread]:
    """Start the thread of an engine that was loaded; it ends when its client is deleted."""
    inboxes = Inboxes()
    thread = EngineThread(engine.core, inboxes.deliver, inboxes.fail)
    client = EngineClient(thread, inboxes, engine.frontend(), engine.config)
    weakref.finalize(client, thread.close)
    return client
