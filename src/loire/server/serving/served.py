"""The model that is served: its names, and the engine behind it once it is loaded."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from fastapi import Depends, Request

from loire.base.background import background_thread
from loire.base.errors import EngineError
from loire.base.lora import MOST_ADAPTERS
from loire.base.messages import AdapterCounts
from loire.engine.adapters import AdapterNames
from loire.server.access.admission import Admission
from loire.server.access.caller import Caller
from loire.server.observe.engine_state import EngineState
from loire.server.observe.metrics import Metrics
from loire.server.observe.request_watch import Observer
from loire.server.serving.answer_bytes import HeldAnswers
from loire.server.serving.preparation import Preparations
from loire.server.serving.served_engine import ServedEngine
from loire.server.web.errors import ApiError

State: TypeAlias = Literal["loading", "ready", "draining", "stopped"]


class ServedModel:
    """One model under one or more names: loading at first, then ready, at last draining.

    names: what requests may call it; the first is the one it is shown under. admission: bounds
    the queue. log_prompts: whether the log shows what is asked.
    """

    def __init__(
        self,
        names: Sequence[str],
        engine: ServedEngine | None = None,
        admission: Admission | None = None,
        *,
        log_prompts: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.created = int(time.time())
        self.draining = False
        """Whether the server is stopping: no new requests are taken."""
        self.admission = admission or Admission()
        self.observer = Observer(Metrics(self._engine_state), log_prompts=log_prompts)
        self.preparations = Preparations()
        self.held_answers = HeldAnswers()
        self.adapters: AdapterNames | None = None
        """Adapters that are served beside the model, once it is loaded; None: it can have none."""
        self.lora_root: Path | None = None
        """Below which adapters may be loaded while the server runs; None: nowhere."""
        self.max_adapters = MOST_ADAPTERS
        """That can be in memory together."""
        self.adapter_loader = background_thread("loire-adapters")
        """Loads and unloads adapters, in the order in which that was asked for."""
        self._engine: ServedEngine | None = None
        if engine is not None:
            self.set_ready(engine)

    @property
    def state(self) -> State:
        """What a load balancer must know."""
        if self._engine is not None and not self._engine.link.alive:
            return "stopped"
        if self.draining:
            return "draining"
        if self._engine is None or not self._engine.link.is_ready:
            return "loading"
        return "ready"

    @property
    def window(self) -> int:
        """Tokens of a request, prompt and output together; 0 while the model loads."""
        return 0 if self._engine is None else self._engine.config.max_model_len

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running."""
        return 0 if self._engine is None else self._engine.link.num_requests

    def set_ready(self, engine: ServedEngine) -> None:
        """From now on, requests are taken."""
        self._engine = engine
        engine.watch_steps(self.observer.add_step)

    @property
    def engine(self) -> ServedEngine:
        """The engine, for what joins no queue; client.admit() is for what does.

        Raises ApiError (503) while it loads, while the server drains, and after it has stopped.
        """
        if self.draining:
            raise ApiError(503, "the server is stopping and takes no new requests", code="draining")
        if self._engine is None:
            raise ApiError(
                503, "the model is loading: ask again when /health answers 200", code="loading"
            )
        if not self._engine.link.alive:
            raise ApiError(
                503, "the engine has stopped: the server must be restarted", code="engine_stopped"
            )
        return self._engine

    def engine_for(self, name: str, caller: Caller) -> ServedEngine:
        """The engine of a model, as `engine`. Raises ApiError: 404 if there is no such model for
        this caller."""
        if name not in self.names and not self.adapter_of(name, caller):
            known = ", ".join(repr(known) for known in self.names)
            raise ApiError(
                404,
                f"the model {name!r} is not served here: ask for {known}",
                param="model",
                code="model_not_found",
            )
        return self.engine

    def adapter_of(self, name: str, caller: Caller) -> str:
        """The content of the adapter of that name; "" for the model itself, for nobody, and for one
        that the caller may not use."""
        if self.adapters is None or not caller.may_use(name):
            return ""
        return self.adapters.identity(name) or ""

    @property
    def adapter_counts(self) -> AdapterCounts:
        """How the engine's memory of adapters stands."""
        return AdapterCounts() if self._engine is None else self._engine.link.adapters

    def check_queue(self, tenant: str) -> None:
        """Raises ApiError (429) if the queue is full for this tenant.

        Nothing is full while no requests are taken at all: why not is for the route to say.
        """
        engine = self._engine
        if engine is not None and engine.link.alive and not self.draining:
            self.admission.check(engine.link, tenant, self.observer.waiting_of(tenant))

    def end_all(self, error: EngineError) -> None:
        """End every request with this error."""
        if self._engine is not None:
            self._engine.end_all(error)

    async def close(self) -> None:
        """Stop the engine, if there is one."""
        if self._engine is not None:
            await self._engine.close()

    def _engine_state(self) -> EngineState | None:
        engine = self._engine
        if engine is None:
            return None
        link = engine.link
        running_adapters, waiting_adapters = self.observer.adapters()
        return EngineState(
            num_running=link.num_requests - link.num_waiting,
            num_waiting=link.num_waiting,
            num_waiting_tokens=link.num_waiting_tokens,
            num_blocks=engine.config.num_blocks,
            num_blocks_in_use=link.blocks_in_use,
            num_restarts=link.num_restarts,
            model=self.names[0],
            block_size=engine.config.block_size,
            kv_cache_dtype=engine.config.kv_cache_dtype,
            enable_prefix_caching=engine.config.enable_prefix_caching,
            adapters=None if self.adapters is None else link.adapters,
            max_adapters=self.max_adapters,
            running_adapters=running_adapters,
            waiting_adapters=waiting_adapters,
        )


async def _served(request: Request) -> ServedModel:
    served: ServedModel = request.app.state.served
    return served


Served = Annotated[ServedModel, Depends(_served)]
"""A route's parameter: the model that its app serves."""
