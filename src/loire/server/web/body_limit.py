"""Bounds on request bodies, checked while they arrive: size, pace, and all of them together."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loire.server.web.errors import error_response
from loire.server.web.routes import MAX_BODY_BYTES, route_of

FIRST_S = 30.0
"""For a body however small."""
SLOWEST_BYTES_PER_S = 10_000
"""Pace at which a body may arrive at the slowest after that."""
MAX_HELD_BYTES = 16 * MAX_BODY_BYTES
"""Of all bodies that are in memory before their answers begin."""


class BodyLimit:
    """ASGI middleware: 413 for a body that is, or grows, larger than its route reads; 408 for one
    that does not come; 503 while the bodies of others fill the memory that is theirs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self, route_of(scope["path"]).max_body_bytes, receive, send)
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0]) > body.max_bytes:
            error = _too_large(f"{int(lengths[0]):,}", body.max_bytes)
            await error_response(error, scope["path"])(scope, receive, send)
            return
        try:
            await self._app(scope, body.receive, body.send)
        finally:
            body.let_go()

    def hold(self, num_bytes: int) -> None:
        """Count bytes of a body that is in memory. Raises HTTPException if they are too many."""
        if self._held + num_bytes > MAX_HELD_BYTES:
            raise HTTPException(
                503,
                f"the bodies of other requests fill the {MAX_HELD_BYTES:,} bytes that are meant "
                f"for them: try again",
                headers={"Retry-After": "1"},
            )
        self._held += num_bytes

    def let_go(self, num_bytes: int) -> None:
        """They are no more."""
        self._held -= num_bytes


class _Body:
    """The body of one request, on its way in."""

    def __init__(self, limit: BodyLimit, max_bytes: int, receive: Receive, send: Send) -> None:
        self.max_bytes = max_bytes
        self._limit = limit
        self._receive = receive
        self._send = send
        # Files go to the disk while they arrive.
        self._stays_in_memory = max_bytes <= MAX_BODY_BYTES
        self._num_received = self._num_held = 0
        self._is_whole = False
        self._began_s = time.monotonic()

    async def receive(self) -> Message:
        """The next part, or whatever follows a whole body."""
        if self._is_whole:
            return await self._receive()
        left_s = self._began_s + FIRST_S + self._num_received / SLOWEST_BYTES_PER_S
        try:
            # Starlette's own exceptions, which FastAPI lets through while it reads the body.
            message = await asyncio.wait_for(self._receive(), left_s - time.monotonic())
        except asyncio.TimeoutError:
            raise HTTPException(
                408,
                f"the body came too slowly: {self._num_received:,} bytes in "
                f"{time.monotonic() - self._began_s:.0f} s",
                headers={"Connection": "close"},
            ) from None
        self._is_whole = not message.get("more_body", False)
        num_bytes = len(message.get("body", b""))
        self._num_received += num_bytes
        if self._num_received > self.max_bytes:
            raise _too_large(f"more than {self.max_bytes:,}", self.max_bytes)
        if self._stays_in_memory and num_bytes:
            self._limit.hold(num_bytes)
            self._num_held += num_bytes
        return message

    async def send(self, message: Message) -> None:
        """The answer begins: the body was read."""
        self.let_go()
        await self._send(message)

    def let_go(self) -> None:
        """Its bytes are not held any more."""
        self._limit.let_go(self._num_held)
        self._num_held = 0


def _too_large(size: str, max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body has {size} bytes, but at most {max_bytes:,} are read")
