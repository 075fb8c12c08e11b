"""The client's side of a fleet: what the server needs of an engine, over many."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from loire.base.config import EngineOptions
from loire.base.errors import EngineError
from loire.base.step import StepRecord
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.description import ModelDescription
from loire.engine.adapters import AdapterNames
from loire.engine.client import EngineClient
from loire.engine.frontend import Frontend
from loire.engine.inbox import Inboxes
from loire.fleet.link import FleetLink
from loire.fleet.messages import Joined
from loire.fleet.placement import Placement


def frontend_of(checkpoint: Checkpoint, first: Joined, options: EngineOptions) -> Frontend:
    """The client's side of a model that replicas serve; takes a while. options: as a single engine
    would have them, of which the chat template, recommendations and system message count here."""
    config = first.config
    return Frontend(
        checkpoint.with_options(options),
        config.max_model_len,
        config.seed,
        allow_special_in_text=config.allow_special_in_text,
        system=options.system or config.system,
    )


class FleetClient(EngineClient[FleetLink]):
    """Many replicas of one model, used as one engine, on one event loop, where it is made.

    frontend: see frontend_of(). first: the replica by which the fleet's window and vocabulary are
    settled; others must fit it. description: of the model, which adapters must fit. Replicas take
    part while link.follow() follows them.
    """

    adapters: AdapterNames
    """Names of adapters that requests may be for, in all replicas. Loading one takes a while: on a
    thread."""

    def __init__(
        self,
        frontend: Frontend,
        first: Joined,
        description: ModelDescription,
        *,
        placement: Placement | None = None,
        request_timeout_s: float | None = None,
    ) -> None:
        inboxes = Inboxes()
        link = FleetLink(inboxes.deliver, placement=placement, accepts=self._check)
        super().__init__(link, inboxes, frontend, first.config, request_timeout_s)
        self._first = first
        loop = asyncio.get_running_loop()
        self.adapters = AdapterNames(
            description,
            lambda adapter: loop.call_soon_threadsafe(link.announce, adapter),
        )

    def watch_steps(self, listener: Callable[[StepRecord], None]) -> Callable[[], None]:
        """No step is told here."""
        return lambda: None

    def end_all(self, error: EngineError) -> None:
        """End every request with this error."""
        self.fail_all(error)

    async def close(self) -> None:
        """Leave the replicas, which go on; open streams end with EngineError."""
        self.link.close()
        self.fail_all(EngineError("the fleet was closed"))

    def _check(self, joined: Joined) -> None:
        """Raise EngineError for a replica that could not go on with what others began."""
        if joined.model != self._first.model:
            raise EngineError("it serves another model: its configuration or tokenizer differs")
        window, needed = joined.config.max_model_len, self._first.config.max_model_len
        if window < needed:
            raise EngineError(
                f"its window is {window} tokens, but requests here may have {needed}: start all "
                f"replicas with the same max_model_len"
            )
        num_blocks = joined.config.num_blocks + sum(
            replica.config.num_blocks for replica in self.link.replicas if replica is not joined
        )
        self.config = replace(self.config, num_blocks=num_blocks)
