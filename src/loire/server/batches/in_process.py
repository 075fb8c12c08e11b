"""Runs the requests of batches through the very routes that answer HTTP, without HTTP."""

import asyncio

from starlette.types import ASGIApp, Message

from loire.server.access.caller import Caller, set_caller
from loire.server.access.keys import KeyRing
from loire.server.web.call import Call, set_call

BATCH_PRIORITY = 100
"""Background work; requests that somebody waits for have 0 unless they say otherwise."""


class BatchRoutes:
    """Calls the routes of an app that has no guards: keys and limits held for the batch itself."""

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        """ring: says which adapters a tenant may use by now."""
        self._app = app
        self._ring = ring

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
        adapters = self._ring.adapters_of(tenant)
        set_caller(scope, Caller(tenant, least_priority=BATCH_PRIORITY, adapters=adapters))
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
