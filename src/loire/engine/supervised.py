"""A model whose engine runs in a process of its own: the twin of AsyncLLM for servers.

Here are the text, the ledgers and the supervision; nothing here imports torch.
"""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from loire.base.config import EngineOptions
from loire.base.errors import EngineError
from loire.base.foreign_threads import foreign_thread
from loire.base.step import StepRecord
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
from loire.engine.adapters import AdapterNames
from loire.engine.client import EngineClient
from loire.engine.frontend import Frontend
from loire.engine.inbox import Inboxes
from loire.engine.process import Launched
from loire.engine.supervisor import DEFAULT_SUPERVISION, EngineSupervisor, SupervisorOptions
from loire.engine.wire import LoadModel
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer

T = TypeVar("T")

LEAVE_S = 2.0
"""What a download has to end its processes and to remove what is half there."""


class SupervisedEngine(EngineClient[EngineSupervisor]):
    """A running engine and its client's side; make it with create(). Used on one event loop."""

    plan_lines: tuple[str, ...] = ()
    """How the memory is used and what fits, in two lines."""
    adapters: AdapterNames
    """Names of adapters that requests may be for. Loading one takes a while: on a thread."""

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
        inboxes = Inboxes()

        def fail(error: EngineError) -> None:
            inboxes.fail(error)
            on_failure(error)

        supervisor = EngineSupervisor(inboxes.deliver, fail, supervision)
        await supervisor.start(launched)
        try:
            path = await _on_foreign_thread(lambda go_on: resolve_model(model, go_on=go_on))
            loading = asyncio.create_task(supervisor.load(LoadModel(str(path), model, options)))
            try:
                checkpoint, tokenizer = await _on_foreign_thread(lambda go_on: _read(path))
                ready = await loading
            finally:
                loading.cancel()
        except BaseException:
            await supervisor.close()
            raise
        config = ready.config
        frontend = Frontend(
            checkpoint.with_options(options),
            config.max_model_len,
            config.seed,
            tokenizer=tokenizer,
            allow_special_in_text=config.allow_special_in_text,
            system=config.system,
        )
        self = cls(supervisor, inboxes, frontend, config, request_timeout_s)
        loop = asyncio.get_running_loop()
        self.adapters = AdapterNames(
            checkpoint.description,
            # (Before whatever those who load it ask of the loop next.)
            lambda adapter: loop.call_soon_threadsafe(supervisor.announce, adapter),
        )
        self.plan_lines = ready.plan_lines
        return self

    def watch_steps(self, listener: Callable[[StepRecord], None]) -> Callable[[], None]:
        """Tell a listener of each step from now on; call what is returned to end that."""
        listeners = self.link.step_listeners
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    def end_all(self, error: EngineError) -> None:
        """End every request with this error."""
        self.fail_all(error)

    async def close(self) -> None:
        """Stop the engine at once; open streams end with EngineError."""
        await self.link.close()
        self.fail_all(EngineError("the engine was closed"))


def _read(path: Path) -> tuple[Checkpoint, Tokenizer]:
    checkpoint = open_checkpoint(path)
    return checkpoint, checkpoint_tokenizer(checkpoint)


async def _on_foreign_thread(work: Callable[[Callable[[], None]], T]) -> T:
    """The result of blocking work, on a thread that does not keep the process from ending.

    work is given what it may call again and again: that raises EngineError once nobody waits any
    more, and work has LEAVE_S from then on to clear up.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    left = threading.Event()

    def go_on() -> None:
        if left.is_set():
            raise EngineError("nobody waits for the model any more")

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        set_outcome: Callable[[Any], None]
        outcome: object
        try:
            outcome, set_outcome = work(go_on), future.set_result
        except BaseException as error:  # noqa: BLE001  raised again where it is awaited
            outcome, set_outcome = error, future.set_exception
        try:
            loop.call_soon_threadsafe(settle, set_outcome, outcome)
        except RuntimeError:
            if not loop.is_closed():
                raise

    foreign_thread("loire-load", run)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        left.set()
        await asyncio.wait({future}, timeout=LEAVE_S)
        future.cancel() or future.exception()
        raise
