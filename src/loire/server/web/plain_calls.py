"""Calls in the forms that proxies and careless clients write: HEAD, and slashes at the end."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class PlainCalls:
    """ASGI middleware before all others: `/v1/models/` is `/v1/models`, and HEAD is answered with
    what the answer to GET begins with."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path.endswith("/") and path != "/":
            path = path.rstrip("/") or "/"
            scope = {**scope, "path": path, "raw_path": path.encode()}
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        head = _Head(receive, send)
        await self._app({**scope, "method": "GET"}, head.receive, head.send)


class _Head:
    """An answer whose body is not sent. Once its head is, the client counts as gone, so that
    streams end."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._done = asyncio.Event()

    async def receive(self) -> Message:
        """What the client sends."""
        arriving = asyncio.ensure_future(self._receive())
        leaving = asyncio.ensure_future(self._done.wait())
        try:
            await asyncio.wait({arriving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"} if self._done.is_set() else await arriving
        finally:
            arriving.cancel()
            leaving.cancel()

    async def send(self, message: Message) -> None:
        """The head, and an empty body."""
        if message["type"] == "http.response.start":
            await self._send(message)
            self._done.set()
            await self._send({"type": "http.response.body", "body": b""})
