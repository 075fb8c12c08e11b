"""Server-sent events: the stream of a request, ended when its client goes away.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi import Response
from starlette.types import Receive, Scope, Send

from loire.base.errors import LoireError
from loire.server.web.connection import while_connected
from loire.server.web.errors import ClientDisconnectedError, error_text
from loire.server.web.routes import Dialect, dialect_of

DONE = b"data: [DONE]\n\n"

_KEEP_ALIVE: dict[Dialect, bytes] = {
    "openai": b": keep-alive\n\n",  # a comment, which clients skip
    "anthropic": b'event: ping\ndata: {"type": "ping"}\n\n',
}


_SEPARATORS = str.maketrans({"\x85": r"\u0085", "\u2028": r"\u2028", "\u2029": r"\u2029"})


def on_one_line(data: str) -> str:
    """JSON without the line breaks that Unicode knows beside ASCII's: readers split lines there."""
    if data.isascii() or not any(chr(separator) in data for separator in _SEPARATORS):
        return data
    return data.translate(_SEPARATORS)


def event(data: str, name: str = "") -> bytes:
    """An event. data: JSON, so without line breaks of ASCII."""
    head = f"event: {name}\n" if name else ""
    data = on_one_line(data)
    return f"{head}data: {data}\n\n".encode()


class EventStream(Response):
    """Sends events as they come, one write for each item of `events`, and `done` after the last.

    Errors after the first byte cannot change the status any more: they become a last event, made
    by `failure` (by default of the form {"error": ...}), which `done` does not follow. Whatever
    the end, the generator is closed. While there are no events, something without meaning is sent
    every so many seconds as the app's state has as `keep_alive_s`: proxies cut silent connections,
    many after a minute, and a request may wait or prefill for longer.
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
        keep_alive_s = scope["app"].state.keep_alive_s
        writer = _Writer(send, keep_alive_s, _KEEP_ALIVE[dialect_of(scope["path"])])
        async with aclosing(self._events):
            try:
                await while_connected(receive, self._send_all(start, send, writer))
            except ClientDisconnectedError:
                return

    async def _send_all(self, start: dict[str, object], send: Send, writer: "_Writer") -> None:
        await send(start)
        keeping = asyncio.create_task(writer.keep_alive())
        try:
            async for chunk in self._events:
                await writer.write(chunk)
            keeping.cancel()
            await writer.write(self._done, more=False)
        except Exception as error:
            keeping.cancel()
            await writer.write(self._failure(error), more=False)
            if not isinstance(error, LoireError):
                raise
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


class _Writer:
    """Writes parts of a body, and something between them if they are far apart."""

    def __init__(self, send: Send, keep_alive_s: float, filler: bytes) -> None:
        self._send = send
        self._keep_alive_s = keep_alive_s
        self._filler = filler
        self._num_writing = 0
        self._last_s = time.monotonic()

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """Write a part."""
        self._num_writing += 1
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        finally:
            self._num_writing -= 1
            self._last_s = time.monotonic()

    async def keep_alive(self) -> None:
        """Until it is cancelled, write the filler when nothing else was written for a while."""
        while True:
            left_s = self._last_s + self._keep_alive_s - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
            elif self._num_writing:  # a slow reader has enough to read
                await asyncio.sleep(self._keep_alive_s)
            else:
                await self.write(self._filler)
