"""Steps on a thread of their own: how an executor that computes at once lets others work beside."""

from concurrent.futures import Future, ThreadPoolExecutor

from loire.base.executor import StepExecutor
from loire.base.step import StepPlan, StepResult


class Threaded:
    """Another executor on a thread of its own, so that launch() returns at once."""

    def __init__(self, executor: StepExecutor) -> None:
        self._executor = executor
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loire-step")

    def launch(self, plan: StepPlan) -> "Future[StepResult]":
        """Queue the step behind those before it."""
        return self._pool.submit(lambda: self._executor.launch(plan).result())

    def close(self) -> None:
        """Wait for the step in progress, drop those behind it, and stop the thread."""
        self._pool.shutdown(cancel_futures=True)
