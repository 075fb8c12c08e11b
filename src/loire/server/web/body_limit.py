"""A bound on the size of request bodies, checked before they are held in memory."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loire.server.web.errors import error_response
from loire.server.web.routes import route_of


class BodyLimit:
    """ASGI middleware: answers 413 when a body is, or grows, larger than its route reads."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes = route_of(scope["path"]).max_body_bytes
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0]) > max_bytes:
            error = _too_large(f"{int(lengths[0]):,}", max_bytes)
            await error_response(error, scope["path"])(scope, receive, send)
            return
        num_received = 0

        async def counted() -> Message:
            nonlocal num_received
            message = await receive()
            num_received += len(message.get("body", b""))
            if num_received > max_bytes:
                raise _too_large(f"more than {max_bytes:,}", max_bytes)
            return message

        await self._app(scope, counted, send)


def _too_large(size: str, max_bytes: int) -> HTTPException:
    # Starlette's own exception, which FastAPI lets through while it reads the body.
    return HTTPException(413, f"the body has {size} bytes, but at most {max_bytes:,} are read")
