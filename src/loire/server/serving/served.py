"""The model that is served: its names, and the engine behind it once it is loaded."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeAlias

from fastapi import Depends, Request

from loire.base.errors import EngineError
from loire.base.step import StepRecord
from loire.server.access.admission import Admission, Ticket, get_ticket
from loire.server.access.caller import Caller, get_caller
from loire.server.observe.metrics import EngineState, Metrics
from loire.server.observe.request_watch import Observer
from loire.server.serving.request_client import AdmittedClient, RequestClient
from loire.server.serving.tenants import TenantClient
from loire.server.web.call import Call, get_call
from loire.server.web.errors import ApiError

State: TypeAlias = Literal["loading", "ready", "draining", "stopped"]


class EngineClient(RequestClient, Protocol):
    """What the server needs of an engine. `engine.supervised.SupervisedEngine` gives it."""

    @property
    def alive(self) -> bool:
        """Whether requests can be taken; also while a new engine takes over from a dead one."""
        ...

    @property
    def ready(self) -> bool:
        """Whether there is an engine now that computes."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running."""
        ...

    @property
    def records(self) -> Sequence[StepRecord]:
        """What happened in the latest steps, oldest first."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        ...

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        ...

    @property
    def num_blocks_in_use(self) -> int:
        """KV blocks that requests hold."""
        ...

    @property
    def num_restarts(self) -> int:
        """Engines that were started to replace one that had died."""
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


class ServedModel:
    """One model under one or more names: loading at first, then ready, at last draining.

    names: what requests may call it; the first is the one it is shown under. admission: bounds
    the queue. log_prompts: whether the log shows what is asked.
    """

    def __init__(
        self,
        names: Sequence[str],
        client: EngineClient | None = None,
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
        self._client: EngineClient | None = None
        if client is not None:
            self.set_ready(client)

    @property
    def state(self) -> State:
        """What a load balancer must know."""
        if self._client is not None and not self._client.alive:
            return "stopped"
        if self.draining:
            return "draining"
        if self._client is None or not self._client.ready:
            return "loading"
        return "ready"

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running."""
        return 0 if self._client is None else self._client.num_requests

    def set_ready(self, client: EngineClient) -> None:
        """From now on, requests are taken."""
        self._client = client
        client.watch_steps(self.observer.add_step)

    @property
    def client(self) -> EngineClient:
        """The engine.

        Raises ApiError (503) while it loads, while the server drains, and after it has stopped.
        """
        if self.draining:
            raise ApiError(503, "the server is stopping and takes no new requests", code="draining")
        if self._client is None:
            raise ApiError(
                503, "the model is loading: ask again when /health answers 200", code="loading"
            )
        if not self._client.alive:
            raise ApiError(
                503, "the engine has stopped: the server must be restarted", code="engine_stopped"
            )
        return self._client

    def client_for(self, name: str) -> EngineClient:
        """The engine that serves a model. Raises ApiError: 404 if there is no such model."""
        if name not in self.names:
            known = ", ".join(repr(known) for known in self.names)
            raise ApiError(
                404,
                f"the model {name!r} is not served here: ask for {known}",
                param="model",
                code="model_not_found",
            )
        return self.client

    def check_queue(self, tenant: str) -> None:
        """Raises ApiError (429) if the queue is full for this tenant.

        Nothing is full while no requests are taken at all: why not is for the route to say.
        """
        client = self._client
        if client is not None and client.alive and not self.draining:
            self.admission.check(client, tenant, self.observer.waiting_of(tenant))

    def end_all(self, error: EngineError) -> None:
        """End every request with this error."""
        if self._client is not None:
            self._client.end_all(error)

    async def close(self) -> None:
        """Stop the engine, if there is one."""
        if self._client is not None:
            await self._client.close()

    def _engine_state(self) -> EngineState | None:
        client = self._client
        if client is None:
            return None
        return EngineState(
            num_running=client.num_requests - client.num_waiting,
            num_waiting=client.num_waiting,
            num_waiting_tokens=client.num_waiting_tokens,
            num_blocks=client.config.num_blocks,
            num_blocks_in_use=client.num_blocks_in_use,
            num_restarts=client.num_restarts,
        )


@dataclass(frozen=True, slots=True)
class ServedToCaller:
    """The served model as a route sees it: what the route runs, it runs for its caller."""

    model: ServedModel
    caller: Caller
    ticket: Ticket
    call: Call

    @property
    def names(self) -> Sequence[str]:
        """What requests may call it."""
        return self.model.names

    @property
    def created(self) -> int:
        """Unix time of the server's start."""
        return self.model.created

    def client_for(self, name: str) -> TenantClient:
        """The engine that serves a model, for a request of the caller that may join its queue now.

        Raises ApiError as ServedModel does, and 429 if the queue or the tenant's share is full.
        """
        client = self.model.client_for(name)
        tenant = self.caller.tenant
        waiting = self.model.observer.waiting_of(tenant)
        self.model.admission.admit(self.ticket, client, tenant, waiting)
        admitted = AdmittedClient(client, self.ticket)
        return TenantClient(admitted, self.caller, self.model.observer, self.call)


async def _served_to_caller(request: Request) -> ServedToCaller:
    scope = request.scope
    return ServedToCaller(
        request.app.state.served, get_caller(scope), get_ticket(scope), get_call(scope)
    )


Served = Annotated[ServedToCaller, Depends(_served_to_caller)]
"""A route's parameter: the model that its app serves, for whoever made the call."""
