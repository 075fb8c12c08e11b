"""The model that is served: its names, and the engine behind it once it is loaded."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request

from loire.base.step import StepRecord
from loire.server.caller import Caller, get_caller
from loire.server.errors import ApiError
from loire.server.request_client import RequestClient
from loire.server.tenants import TenantClient


class EngineClient(RequestClient, Protocol):
    """What the server needs of an engine. AsyncLLM is one."""

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running."""
        ...

    @property
    def records(self) -> Sequence[StepRecord]:
        """What happened in the latest steps, oldest first."""
        ...

    async def close(self) -> None:
        """Stop the engine."""
        ...


class ServedModel:
    """One model under one or more names; loading at first, then ready.

    names: what requests may call it; the first is the one it is shown under.
    """

    def __init__(self, names: Sequence[str], client: EngineClient | None = None) -> None:
        self.names = tuple(names)
        self.created = int(time.time())
        self._client = client

    @property
    def loading(self) -> bool:
        """Whether the engine is still on its way."""
        return self._client is None

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._client is not None and self._client.alive

    def set_ready(self, client: EngineClient) -> None:
        """From now on, requests are taken."""
        self._client = client

    @property
    def client(self) -> EngineClient:
        """The engine. Raises ApiError (503) while it loads and after it has stopped."""
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

    async def close(self) -> None:
        """Stop the engine, if there is one."""
        if self._client is not None:
            await self._client.close()


@dataclass(frozen=True, slots=True)
class ServedToCaller:
    """The served model as a route sees it: what the route runs, it runs for its caller."""

    model: ServedModel
    caller: Caller

    @property
    def names(self) -> Sequence[str]:
        """What requests may call it."""
        return self.model.names

    @property
    def created(self) -> int:
        """Unix time of the server's start."""
        return self.model.created

    def client_for(self, name: str) -> TenantClient:
        """The engine that serves a model, for the caller. Raises ApiError as ServedModel does."""
        return TenantClient(self.model.client_for(name), self.caller)


async def _served_to_caller(request: Request) -> ServedToCaller:
    return ServedToCaller(request.app.state.served, get_caller(request.scope))


Served = Annotated[ServedToCaller, Depends(_served_to_caller)]
"""A route's parameter: the model that its app serves, for whoever made the call."""
