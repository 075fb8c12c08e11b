"""Server-sent events: the stream of a request, ended when its client goes away.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Response
from starlette.types import Receive, Scope, Send

from loire.base.errors import LoireError
from loire.server.connection import while_connected
from loire.server.errors import ClientDisconnectedError, describe

DONE = b"data: [DONE]\n\n"


def event(data: str) -> bytes:
    """An event. data: JSON, so without line breaks."""
    return f"data: {data}\n\n".encode()


class EventStream(Response):
    """Sends events as they come, one write for each item of `events`.

    Errors after the first byte cannot change the status any more: they become a last event of the
    form {"error": ...}, and [DONE] does not follow. Whatever the end, the generator is closed.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with aclosing(self._events):
            try:
                await while_connected(receive, self._send_all(start, send))
            except ClientDisconnectedError:
                return

    async def _send_all(self, start: dict[str, object], send: Send) -> None:
        async def write(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await send(start)
        try:
            async for chunk in self._events:
                await write(chunk)
            await write(DONE, more=False)
        except Exception as error:
            _, body = describe(error)
            await write(event(json.dumps(body.model_dump())), more=False)
            if not isinstance(error, LoireError):
                raise
