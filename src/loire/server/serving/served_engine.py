"""What the server needs of an engine."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from loire.base.config import EngineConfig
from loire.base.errors import EngineError
from loire.base.messages import AdapterCounts
from loire.base.outputs import RequestOutput
from loire.base.step import StepRecord
from loire.engine.frontend import Frontend
from loire.engine.requests import Submission


class ServedLink(Protocol):
    """What the way to an engine tells of it: see loire.engine.client.EngineLink."""

    @property
    def alive(self) -> bool:
        """Whether requests can be taken; also while a new engine takes over from a dead one."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether there is an engine now that computes."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        ...

    @property
    def num_waiting_sequences(self) -> int:
        """That they ask for: n of each."""
        ...

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        ...

    @property
    def records(self) -> Sequence[StepRecord]:
        """What happened in the latest steps, oldest first."""
        ...

    @property
    def blocks_in_use(self) -> int:
        """KV blocks that requests hold."""
        ...

    @property
    def num_restarts(self) -> int:
        """Engines that were started to replace one that had died."""
        ...

    @property
    def adapters(self) -> AdapterCounts:
        """How the engine's memory of adapters stands."""
        ...


class ServedEngine(Protocol):
    """One engine (engine.supervised.SupervisedEngine), or many as one (fleet.client.FleetClient).

    Requests are made with `frontend` and `next_id`, and run with `stream`.
    """

    @property
    def config(self) -> EngineConfig:
        """The settled configuration."""
        ...

    @property
    def link(self) -> ServedLink:
        """The way to it, which knows how it is."""
        ...

    @property
    def frontend(self) -> Frontend:
        """Tokenizer, chat template and request checks."""
        ...

    def next_id(self) -> str:
        """An id that no request of this engine has had."""
        ...

    def stream(self, submission: Submission) -> AsyncIterator[RequestOutput]:
        """Run a request; each output holds what is new. Closing the iterator ends it."""
        ...

    def watch_steps(self, listener: Callable[[StepRecord], None]) -> Callable[[], None]:
        """Tell a listener of each step from now on; call what is returned to end that."""
        ...

    def end_all(self, error: EngineError) -> None:
        """End every request with this error."""
        ...

    async def close(self) -> None:
        """Stop the engine."""
        ...
