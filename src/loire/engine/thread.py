"""The engine on a thread of its own, for callers that must not wait for a step."""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from loire.base.errors import EngineError
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.engine.core import EngineCore

Command = Callable[[EngineCore], object]


class EngineThread:
    """Runs an EngineCore; commands are carried out between steps, in order. An EngineLink.

    The callbacks are called on the engine's thread: on_step after each step, on_rest when commands
    left nothing to compute, on_death once, when it cannot go on. Idle, it sleeps on a condition.
    """

    def __init__(
        self,
        core: EngineCore,
        on_step: Callable[[Sequence[SequenceUpdate]], None],
        on_death: Callable[[EngineError], None],
        on_rest: Callable[[], None] = lambda: None,
    ) -> None:
        self.core = core
        self._on_step = on_step
        self._on_death = on_death
        self._on_rest = on_rest
        self._commands: deque[Command] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._death: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="loire-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        return self._death is None and not self._stopping

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Raises EngineError if the engine has stopped."""
        self.send([lambda core: core.add(request)])

    def abort(self, request_id: str) -> None:
        """End a request at the next step boundary."""
        self.send([lambda core: core.abort(request_id)])

    def abort_choice(self, request_id: str, choice: int) -> None:
        """End one completion at the next step boundary."""
        self.send([lambda core: core.abort_choice(request_id, choice)])

    def send(self, commands: Sequence[Command]) -> None:
        """Have commands carried out together, with no step between them.

        Raises EngineError if the engine has stopped.
        """
        with self._wake:
            if self._death is not None:
                raise self._death
            if self._stopping:
                raise EngineError("the engine was closed: it takes no more requests")
            self._commands += commands
            self._wake.notify()

    def close(self) -> None:
        """Stop after the step in progress. Unfinished requests get no further news."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._carry_out_commands():
                if self.core.has_work:
                    self._on_step(self.core.step())
                else:
                    self._on_rest()
        except Exception as error:  # noqa: BLE001  whatever it was, clients must hear of it
            self._die(error)
        finally:
            self.core.close()

    def _carry_out_commands(self) -> bool:
        """Wait for something to do; False when stopping."""
        with self._wake:
            while not (self._commands or self.core.has_work or self._stopping):
                self._wake.wait()
            if self._stopping:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command(self.core)
        return True

    def _die(self, error: Exception) -> None:
        death = EngineError(f"the engine stopped: {type(error).__name__}: {error}")
        death.__cause__ = error
        with self._wake:
            self._death = death
        self._on_death(death)
