"""A model whose engine runs in a process of its own: the twin of AsyncLLM for servers.

Here are the text, the ledgers and the supervision; nothing here imports torch.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from loire.base.config import EngineConfig, EngineOptions
from loire.base.errors import EngineError
from loire.base.outputs import RequestOutput
from loire.base.step import StepRecord
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
from loire.engine.client import RequestStreams
from loire.engine.frontend import Frontend
from loire.engine.process import Launched
from loire.engine.requests import Submission
from loire.engine.supervisor import DEFAULT_SUPERVISION, EngineSupervisor, SupervisorOptions
from loire.engine.wire import Load, Ready
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer

T = TypeVar("T")


class SupervisedEngine:
    """A running engine and its client's side; make it with create(). Used on one event loop."""

    def __init__(
        self,
        supervisor: EngineSupervisor,
        streams: RequestStreams,
        frontend: Frontend,
        ready: Ready,
        request_timeout_s: float | None,
    ) -> None:
        self.supervisor = supervisor
        self.frontend = frontend
        self.config: EngineConfig = ready.config
        self.plan_lines = ready.plan_lines
        self._streams = streams
        self._request_timeout_s = request_timeout_s
        self._ids = count()

    @classmethod
    async def create(
        cls,
        model: str,
        options: EngineOptions,
        *,
        supervision: SupervisorOptions = DEFAULT_SUPERVISION,
        launched: Launched | None = None,
        request_timeout_s: float | None = None,
        on_failure: Callable[[EngineError], None] = lambda error: None,
    ) -> "SupervisedEngine":
        """Start a process, find the model (downloading it if need be), and load it there.

        launched: the first process, if it was started already. request_timeout_s: most seconds
        from a request's arrival to its end. on_failure: told if there will be no engine any more.
        Raises LoireError if the model cannot be loaded.
        """
        streams = RequestStreams()

        def fail(error: EngineError) -> None:
            streams.fail(error)
            on_failure(error)

        supervisor = EngineSupervisor(streams.deliver, fail, supervision)
        await supervisor.start(launched)
        try:
            path = await _on_daemon_thread(lambda: resolve_model(model))
            loading = asyncio.create_task(supervisor.load(Load(str(path), model, options)))
            try:
                checkpoint, tokenizer = await _on_daemon_thread(lambda: _read(path))
                ready = await loading
            finally:
                loading.cancel()
        except BaseException:
            await supervisor.close()
            raise
        config = ready.config
        frontend = Frontend(checkpoint, config.max_model_len, config.seed, tokenizer=tokenizer)
        return cls(supervisor, streams, frontend, ready, request_timeout_s)

    @property
    def alive(self) -> bool:
        """Whether requests can be taken; also while a new engine is loading."""
        return self.supervisor.alive

    @property
    def ready(self) -> bool:
        """Whether there is an engine now that computes."""
        return self.supervisor.ready is not None

    @property
    def num_requests(self) -> int:
        """Requests in the engine or on their way to it, waiting or running."""
        return self.supervisor.num_requests

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        return self.supervisor.num_waiting

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        return self.supervisor.num_waiting_tokens

    @property
    def records(self) -> Sequence[StepRecord]:
        """What happened in the latest steps, oldest first."""
        return tuple(self.supervisor.records)

    @property
    def num_blocks_in_use(self) -> int:
        """KV blocks that requests hold."""
        return self.supervisor.blocks_in_use

    @property
    def num_restarts(self) -> int:
        """Engines that were started to replace one that had died."""
        return self.supervisor.num_restarts

    def watch_steps(self, listener: Callable[[StepRecord], None]) -> Callable[[], None]:
        """Tell a listener of each step from now on; call what is returned to end that."""
        listeners = self.supervisor.step_listeners
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    def next_id(self) -> str:
        """An id that no request of this engine has had."""
        return f"request-{next(self._ids)}"

    def stream(self, submission: Submission) -> AsyncGenerator[RequestOutput, None]:
        """Run a submission made with `frontend`; each output holds what is new.

        Leaving the iterator (or cancelling the task) ends the request and frees its blocks.
        Raises RequestTimeoutError when its time is over, EngineError if there is no engine.
        """
        return self._streams.stream(
            self.supervisor, submission, self.frontend.tokenizer, self._request_timeout_s
        )

    def end_all(self, error: EngineError) -> None:
        """End every request with this error."""
        self._streams.fail(error)

    async def close(self) -> None:
        """Stop the engine at once; open streams end with EngineError."""
        await self.supervisor.close()
        self._streams.fail(EngineError("the engine was closed"))


def _read(path: Path) -> tuple[Checkpoint, Tokenizer]:
    checkpoint = open_checkpoint(path)
    return checkpoint, checkpoint_tokenizer(checkpoint)


async def _on_daemon_thread(work: Callable[[], T]) -> T:
    """The result of blocking work, on a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        set_outcome: Callable[[Any], None]
        outcome: object
        try:
            outcome, set_outcome = work(), future.set_result
        except BaseException as error:  # noqa: BLE001  raised again where it is awaited
            outcome, set_outcome = error, future.set_exception
        try:
            loop.call_soon_threadsafe(settle, set_outcome, outcome)
        except RuntimeError:
            if not loop.is_closed():
                raise

    threading.Thread(target=run, name="loire-load", daemon=True).start()
    return await future
