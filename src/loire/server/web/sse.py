"""Server-sent events: the stream of a request, ended when its client goes away.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi import Response
from starlette.types import Receive, Scope, Send

from loire.base.errors import LoireError
from loire.server.web.connection import while_connected
from loire.server.web.errors import ClientDisconnectedError, error_text

DONE = b"data: [DONE]\n\n"


_SEPARATORS = str.maketrans({"\x85": r"\u0085", "\u2028": r"\u2028", "\u2029": r"\u2029"})


def on_one_line(data: str) -> str:
    """JSON without the line breaks that Unicode knows beside ASCII's: readers split lines there."""
    return data if data.isascii() else data.translate(_SEPARATORS)


def event(data: str, name: str = "") -> bytes:
    """An event. data: JSON, so without line breaks of ASCII."""
    head = f"event: {name}\n" if name else ""
    data = on_one_line(data)
    return f"{head}data: {data}\n\n".encode()


class EventStream(Response):
    """Sends events as they come, one write for each item of `events`, and `done` after the last.

    Errors after the first byte cannot change the status any more: they become a last event, made
    by `failure` (by default of the form {"error": ...}), which `done` does not follow. Whatever
    the end, the generator is closed.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        done: bytes = DONE,
        failure: Callable[[Exception], bytes] = lambda error: event(error_text(error, "")[1]),
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._done = done
        self._failure = failure

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
            await write(self._done, more=False)
        except Exception as error:
            await write(self._failure(error), more=False)
            if not isinstance(error, LoireError):
                raise
