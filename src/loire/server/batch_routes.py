"""Runs the requests of batches through the very routes that answer HTTP, without HTTP."""

import asyncio
from types import ModuleType

from fastapi import FastAPI
from starlette.types import Message

from loire.server import chat, completions, embeddings, responses
from loire.server.admission import Admission, Tickets
from loire.server.call import Call, set_call
from loire.server.caller import Caller, set_caller
from loire.server.errors import add_error_handlers
from loire.server.response_store import ResponseStore
from loire.server.served import ServedModel

ENDPOINTS: dict[str, ModuleType] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
    "/v1/responses": responses,
}
"""What a batch can ask for, and the module whose router answers it."""

BATCH_PRIORITY = 100
"""Background work; requests that somebody waits for have 0 unless they say otherwise."""


class BatchRoutes:
    """An app of its own over the same model: no keys, no limits, as those held for the batch."""

    def __init__(self, served: ServedModel) -> None:
        self._app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        self._app.state.served = served
        # Thousands of responses would push those out that somebody goes on from.
        self._app.state.responses = ResponseStore()
        for module in ENDPOINTS.values():
            self._app.include_router(module.router)
        # Their tickets are counted apart: a server that drains does not wait for batches.
        self._app.add_middleware(Tickets, admission=Admission())
        add_error_handlers(self._app)

    async def post(
        self, endpoint: str, body: bytes, *, tenant: str, request_id: str
    ) -> tuple[int, bytes]:
        """The status and the body of the answer. Cancelling ends the request in the engine."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": endpoint,
            "raw_path": endpoint.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "scheme": "http",
            "server": None,
            "client": None,
        }
        set_caller(scope, Caller(tenant, least_priority=BATCH_PRIORITY))
        set_call(scope, Call(request_id, "POST", endpoint, tenant))
        status = 0
        parts: list[bytes] = []
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if unread:
                return unread.pop()
            # Nobody disconnects: whoever waits for that is cancelled at the end.
            never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            return await never

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return status, b"".join(parts)
