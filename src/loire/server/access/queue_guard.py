"""Refuses calls for which the queue is full before their bodies are read.

Under a flood almost every call is refused, so that a refusal must cost next to nothing, however
long the prompt: reading, validating and tokenizing it comes after this.
"""

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from loire.server.access.caller import get_caller
from loire.server.web.errors import ApiError
from loire.server.web.refusals import refusal
from loire.server.web.routes import route_of


class QueueGuard:
    """ASGI middleware: 429 while the queue, or the caller's share of it, is full.

    It only looks. The route lets the request in, and refuses it if the last place is gone by then.
    check: raises ApiError (429) if the queue is full for a tenant.
    """

    def __init__(self, app: ASGIApp, check: Callable[[str], None]) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        posted = scope["type"] == "http" and scope["method"] == "POST"
        if posted and route_of(scope["path"]).generates:
            try:
                self._check(get_caller(scope).tenant)
            except ApiError as error:
                await refusal(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
