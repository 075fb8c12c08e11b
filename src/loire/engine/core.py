"""The engine's loop: schedule a step, have it computed, commit its results.

At depth 1 the three follow one another. At depth 2 a step is scheduled while the one before it
still computes; one that turns out to be superfluous is dropped at commit.

A step that raises is taken back: whoever ran waits to be computed again, and nothing is lost. If
what it raised tells of the step and not of the process, the request that it fails with is looked
for (loire.engine.fault_search) and ends with an error; the others go on.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

from loire.base.errors import EngineError, RankLostError
from loire.base.executor import PendingStep, StepExecutor
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.step import StepPlan, StepRecord
from loire.base.structured_outputs import StructuredOutputs
from loire.engine.fault_search import FaultSearch
from loire.engine.threaded import Threaded
from loire.memory.block_events import BlockEvent
from loire.scheduling.scheduler import Scheduler

FORM_PAUSE_S = 0.002
"""Between two looks at constraints that are being compiled, where there is nothing else to do."""
NUM_RECORDS = 4096
"""Step records that are kept, the latest ones."""


class EngineCore:
    """Drives one scheduler and one executor. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: StepExecutor,
        *,
        depth: int = 1,
        num_records: int = NUM_RECORDS,
        on_begin: Callable[[Sequence[str]], None] | None = None,
        form_ready: Callable[[StructuredOutputs], bool] | None = None,
    ) -> None:
        """on_begin: told the ids of requests before the step that computes them first.

        form_ready: whether a sequence with such a constraint could sample at once; it begins to
        compile the constraint.
        """
        self.scheduler = scheduler
        if form_ready is not None:
            scheduler.entrance.form_ready = form_ready
        self._on_begin = on_begin
        self.on_blocks: Callable[[Sequence[BlockEvent]], None] | None = None
        """Told after a step which KV blocks can be found since, and which no more."""
        self.records: deque[StepRecord] = deque(maxlen=num_records)
        self._threaded = Threaded(executor) if depth > 1 else None
        self._executor = self._threaded or executor
        self._depth = depth
        self._in_flight: deque[PendingStep] = deque()
        self._search = FaultSearch(scheduler)

    @property
    def has_work(self) -> bool:
        """Whether step() would do anything."""
        return self.scheduler.has_unfinished or bool(self._in_flight)

    def add(self, request: EngineRequest) -> None:
        """Take in a request."""
        self.scheduler.add(request)

    def abort(self, request_id: str) -> bool:
        """End a request; its blocks are free at once. False if it is not here (any more)."""
        return self.scheduler.abort(request_id)

    def abort_all(self) -> None:
        """End all requests."""
        self.scheduler.abort_all()

    def abort_choice(self, request_id: str, choice: int) -> bool:
        """End one completion of a request."""
        return self.scheduler.abort_choice(request_id, choice)

    def step(self) -> list[SequenceUpdate]:
        """Take the engine one committed step further; the news for the clients.

        Raises EngineError if there is work, but none that can be done, or if steps fail whatever
        is in them: a defect, said aloud instead of spinning. Raises what a step raised if that is
        not of the step's own making, such as KeyboardInterrupt or MemoryError. In each case the
        next call goes on.
        """
        depth = 1 if self._search.is_on else self._depth
        while len(self._in_flight) < depth and (plan := self._plan()) is not None:
            try:
                self._in_flight.append(self._executor.launch(plan))
            except BaseException as error:  # noqa: BLE001  whatever it was, the step is taken back
                return self._failed(error)
        if not self._in_flight:
            return []
        try:
            result = self._in_flight[0].result()
        except BaseException as error:  # noqa: BLE001
            return self._failed(error)
        self._in_flight.popleft()
        updates, record = self.scheduler.commit(result)
        self._search.step_succeeded()
        self.records.append(record)
        if self.on_blocks is not None and (events := self.scheduler.allocator.take_events()):
            self.on_blocks(events)
        return updates

    def close(self) -> None:
        """Wait for what is being computed, and stop the thread."""
        if self._threaded is not None:
            self._threaded.close()
        self._in_flight.clear()

    def _plan(self) -> StepPlan | None:
        """The next step; None if there is nothing to compute, or nothing before results return."""
        plan = self.scheduler.schedule()
        while plan is None and not self._in_flight and self._search.is_on:
            self._search.nothing_to_compute()
            plan = self.scheduler.schedule()
        if plan is None and not self._in_flight and self.scheduler.has_unfinished:
            if self.scheduler.entrance.waits_for_forms:
                time.sleep(FORM_PAUSE_S)
                return None
            raise EngineError(
                f"{self.scheduler.num_requests} requests are unfinished, "
                f"but the scheduler found nothing to compute"
            )
        if plan is not None and self._on_begin is not None and plan.new_sequences:
            self._on_begin(self.scheduler.request_ids(plan.new_sequences))
        return plan

    def _failed(self, error: BaseException) -> list[SequenceUpdate]:
        """Take back the steps in flight, as one of them failed; the news of a request that is to
        blame. Raises error if no request can be."""
        self._in_flight.clear()
        suspects, others_ended = self.scheduler.take_back()
        if not isinstance(error, Exception) or isinstance(error, MemoryError | RankLostError):
            raise error
        return self._search.step_failed(suspects, error, others_ended=others_ended)
