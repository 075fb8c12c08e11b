"""The engine's process: loads a model, then computes what the supervisor sends.

    loire.engine.worker FD        FD: the number of a connected Unix socket

It ends at once when the supervisor closes the socket, or dies. It begins with SIGINT and SIGTERM
held back, ignores them from then on, and is a process group of its own, so that Ctrl-C in a
terminal is for the supervisor alone: when to stop is the supervisor's to say. What it writes to
stderr, the supervisor logs.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from loire.base.config import EngineConfig
from loire.base.errors import EngineError, LoireError
from loire.base.executor import StepExecutor
from loire.base.long_lived import long_lived
from loire.base.messages import AdapterCounts, SequenceUpdate
from loire.base.signals import leave_to_parent
from loire.engine.core import EngineCore
from loire.engine.hang_up import end_with
from loire.engine.pulse import BEAT_S
from loire.engine.thread import Command, EngineThread
from loire.engine.wire import (
    Abort,
    Announce,
    Beat,
    Begun,
    Failed,
    FrameReader,
    FromEngine,
    Loading,
    LoadModel,
    News,
    Ready,
    Submit,
    ToEngine,
    WireError,
    frame,
    read_to_engine,
)

if TYPE_CHECKING:
    from loire.execution.adapters import AdapterShelf
    from loire.execution.constraints import ConstraintFactory

log = logging.getLogger("loire.engine")

RECEIVE_BYTES = 2**16

EXIT_FAILED = 1


class EngineWorker:
    """Both ends of one engine: the socket and the core.

    around: wraps the executor of the steps.
    """

    def __init__(
        self,
        connection: socket.socket,
        around: Callable[[StepExecutor], StepExecutor] = lambda executor: executor,
    ) -> None:
        self._connection = connection
        self._around = around
        self._sending = threading.Lock()
        self._reader = FrameReader()
        self._early: list[ToEngine] = []
        self._tells_names = False
        self._adapters: AdapterShelf | None = None
        """Once the model is loaded."""
        self._told_counts: AdapterCounts | None = None

    def run(self) -> None:
        """Load and compute until the supervisor hangs up."""
        end_with(self._connection)
        with long_lived():
            core = self._load()
        if core is None:
            return
        thread = EngineThread(
            core,
            on_step=lambda updates: self._tell_news(core, updates),
            on_failure=_die,
            on_rest=lambda: self._tell_news(core, ()),
        )
        while messages := self._receive():
            thread.send([_command(message, self._shelf) for message in messages])

    def _load(self) -> EngineCore | None:
        """The core of the model that the supervisor names; None if it cannot be loaded."""
        self.send(Loading("starting"))
        # Beside the supervisor's own preparations: this takes the longest.
        from loire.checkpoint.open import open_checkpoint
        from loire.engine.start import load_engine
        from loire.execution import build  # noqa: F401

        load, *self._early = self._receive()
        if not isinstance(load, LoadModel):
            raise WireError(f"the first message must be Load, but is {type(load).__name__}")
        self._tells_names = load.tells_names
        self.send(Loading("reading the weights"))
        try:
            from pathlib import Path

            checkpoint = open_checkpoint(Path(load.path))
            engine = load_engine(
                checkpoint,
                load.options,
                name=load.name,
                make_core=self._make_core,
                is_own_process=True,
            )
        except LoireError as error:
            self.send(Failed(type(error).__name__, str(error)))
            return None
        self._adapters = engine.adapters
        engine.constraints.prepare()
        self.send(Ready(engine.config, engine.plan_lines, engine.kernels))
        if load.beats:
            threading.Thread(target=self._beat, name="loire-beat", daemon=True).start()
        return engine.core

    def _beat(self) -> None:
        """Live as long as the process does, however long a step takes: kernels compute without the
        interpreter's lock."""
        while True:
            time.sleep(BEAT_S)
            self.send(Beat())

    def _make_core(
        self, config: EngineConfig, executor: StepExecutor, constraints: "ConstraintFactory"
    ) -> EngineCore:
        from loire.scheduling.presets import build_scheduler

        return EngineCore(
            build_scheduler(config, notes_names=self._tells_names),
            self._around(executor),
            depth=config.pipeline_depth,
            num_records=1,  # the supervisor keeps them
            on_begin=lambda request_ids: self.send(Begun(tuple(request_ids))),
            form_ready=constraints.ready,
        )

    @property
    def _shelf(self) -> "AdapterShelf":
        assert self._adapters is not None, "the model is loaded"
        return self._adapters

    def send(self, message: FromEngine) -> None:
        """Send a message; blocks while the supervisor does not read. Ends the process with it."""
        data = frame(message)
        try:
            with self._sending:
                self._connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)

    def _tell_news(self, core: EngineCore, updates: Sequence[SequenceUpdate]) -> None:
        """updates: of a step, if there was one. Its record is told once; a failed step has none."""
        scheduler = core.scheduler
        found, gone = scheduler.allocator.take_names()
        counts = self._shelf.counts
        changed = None if counts is self._told_counts else counts
        self._told_counts = counts
        self.send(
            News(
                tuple(updates),
                core.records.pop() if core.records else None,
                scheduler.num_requests,
                scheduler.allocator.counts.in_use,
                changed,
                found,
                gone,
            )
        )

    def _receive(self) -> list[ToEngine]:
        """The next messages, at least one; none at the end."""
        messages, self._early = self._early, []
        while not messages:
            data = self._connection.recv(RECEIVE_BYTES)
            if not data:
                return []
            messages = [read_to_engine(body) for body in self._reader.feed(data)]
        return messages


def _command(message: ToEngine, shelf: "AdapterShelf") -> Command:
    match message:
        case Announce(adapter):
            return lambda core: shelf.announce(adapter)
        case Submit(request, ended_choices):

            def submit(core: EngineCore) -> None:
                core.add(request)
                for choice in ended_choices:
                    core.abort_choice(request.request_id, choice)

            return submit
        case Abort(request_id, None):
            return lambda core: core.abort(request_id)
        case Abort(request_id, int(choice)):
            return lambda core: core.abort_choice(request_id, choice)
        case _:
            raise WireError(f"{type(message).__name__} comes only once")


def _die(error: EngineError) -> None:
    log.error("%s", error, exc_info=error.__cause__)
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


def main(around: Callable[[StepExecutor], StepExecutor] = lambda executor: executor) -> None:
    """Run the process whose argument is the socket's number."""
    leave_to_parent(signal.SIGINT, signal.SIGTERM)
    os.setpgid(0, 0)
    # Whatever prints to stdout belongs to the log: the supervisor's stdout may be a pipe of data.
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s", level=logging.INFO)
    EngineWorker(socket.socket(fileno=int(sys.argv[1])), around).run()


if __name__ == "__main__":
    main()
