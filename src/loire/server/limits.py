"""A bound on the size of request bodies, checked before they are held in memory."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loire.server.errors import error_response

MAX_BODY_BYTES = 16 * 2**20


class BodyLimit:
    """ASGI middleware: answers 413 when a body is, or grows, larger than max_bytes."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0]) > self._max_bytes:
            await error_response(self._too_large(f"{int(lengths[0]):,}"))(scope, receive, send)
            return
        num_received = 0

        async def counted() -> Message:
            nonlocal num_received
            message = await receive()
            num_received += len(message.get("body", b""))
            if num_received > self._max_bytes:
                raise self._too_large(f"more than {self._max_bytes:,}")
            return message

        await self._app(scope, counted, send)

    def _too_large(self, size: str) -> HTTPException:
        # Starlette's own exception, which FastAPI lets through while it reads the body.
        return HTTPException(
            413, f"the body has {size} bytes, but at most {self._max_bytes:,} are read"
        )
