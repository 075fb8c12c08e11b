"""What a route needs of an engine to run requests in it."""

from collections.abc import AsyncIterator
from typing import Protocol

from loire.base.config import EngineConfig
from loire.base.outputs import RequestOutput
from loire.engine.frontend import Frontend
from loire.engine.requests import Submission
from loire.server.access.admission import Ticket


class RequestClient(Protocol):
    """Builds submissions with `frontend` and `next_id`, and runs them with `stream`."""

    @property
    def config(self) -> EngineConfig:
        """The settled configuration."""
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


class AdmittedClient:
    """A RequestClient whose ticket learns when its request has joined the engine's queue."""

    def __init__(self, client: RequestClient, ticket: Ticket) -> None:
        self._client = client
        self._ticket = ticket

    @property
    def config(self) -> EngineConfig:
        """The settled configuration."""
        return self._client.config

    @property
    def frontend(self) -> Frontend:
        """Tokenizer, chat template and request checks."""
        return self._client.frontend

    def next_id(self) -> str:
        """An id that no request of this engine has had."""
        return self._client.next_id()

    def stream(self, submission: Submission) -> AsyncIterator[RequestOutput]:
        """Run a request; each output holds what is new."""
        self._ticket.joins_queue()
        return self._client.stream(submission)
