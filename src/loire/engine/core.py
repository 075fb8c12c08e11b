"""The engine's loop: schedule a step, compute it, commit its results.

At depth 1 the three follow one another. At depth 2 a step is scheduled while the one before it
still computes on another thread; one that turns out to be superfluous is dropped at commit.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from loire.base.errors import EngineError
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.step import StepPlan, StepRecord, StepResult
from loire.scheduling.scheduler import Scheduler

NUM_RECORDS = 4096
"""Step records that are kept, the latest ones."""


class StepExecutor(Protocol):
    """Computes steps, in the order in which they are given."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute one step."""
        ...


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
    ) -> None:
        """on_begin: told the ids of requests before the step that computes them first."""
        self.scheduler = scheduler
        self._on_begin = on_begin
        self.records: deque[StepRecord] = deque(maxlen=num_records)
        self._executor = executor
        self._depth = depth
        self._in_flight: deque[Callable[[], StepResult]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        if depth > 1:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="loire-step")

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

        Raises EngineError if there is work, but none that can be done: a defect, said aloud
        instead of spinning.
        """
        while len(self._in_flight) < self._depth:
            plan = self.scheduler.schedule()
            if plan is None:
                break
            if self._on_begin is not None and plan.new_sequences:
                self._on_begin(self.scheduler.request_ids(plan.new_sequences))
            self._in_flight.append(self._submit(plan))
        if not self._in_flight:
            if self.scheduler.has_unfinished:
                raise EngineError(
                    f"{self.scheduler.num_requests} requests are unfinished, "
                    f"but the scheduler found nothing to compute"
                )
            return []
        updates, record = self.scheduler.commit(self._in_flight.popleft()())
        self.records.append(record)
        return updates

    def close(self) -> None:
        """Wait for what is being computed, and stop the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._in_flight.clear()

    def _submit(self, plan: StepPlan) -> Callable[[], StepResult]:
        if self._pool is None:
            result = self._executor.execute(plan)
            return lambda: result
        future: Future[StepResult] = self._pool.submit(self._executor.execute, plan)
        return future.result
