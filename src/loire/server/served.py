"""The model that is served: its names, and the engine behind it once it is loaded."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Protocol

from fastapi import Depends, Request

from loire.base.config import EngineConfig
from loire.base.outputs import RequestOutput
from loire.engine.frontend import Frontend
from loire.engine.requests import Submission
from loire.server.errors import ApiError


class EngineClient(Protocol):
    """What the server needs of an engine. AsyncLLM is one."""

    @property
    def config(self) -> EngineConfig:
        """The settled configuration."""
        ...

    @property
    def frontend(self) -> Frontend:
        """Tokenizer, chat template and request checks."""
        ...

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running."""
        ...

    def next_id(self) -> str:
        """An id that no request of this engine has had."""
        ...

    def stream(self, submission: Submission) -> AsyncIterator[RequestOutput]:
        """Run a request; each output holds what is new. Closing the iterator ends it."""
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


async def _served_model(request: Request) -> ServedModel:
    served: ServedModel = request.app.state.served
    return served


Served = Annotated[ServedModel, Depends(_served_model)]
"""A route's parameter: the model that its app serves."""
