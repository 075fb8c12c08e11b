"""Refuses calls beyond their tenant's limits, before their bodies are read."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loire.server.access.admission import QUEUE_FULL
from loire.server.access.caller import get_caller, set_use
from loire.server.access.rates import Use
from loire.server.web.call import get_call
from loire.server.web.errors import ApiError
from loire.server.web.refusals import refusal

FREE = frozenset({QUEUE_FULL, "loading", "draining", "engine_stopped"})
"""Refusals that cost the caller no request: the server could not take any."""


class RateGuard:
    """ASGI middleware: 429 beyond the limits of the caller; the others are told where they stand.

    Only POST calls count: they are the ones that make the engine work. A call that the server
    could not take gives its request back.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        meter = get_caller(scope).meter
        use: Use | None = None

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if use is not None and get_call(scope).error_code in FREE:
                    use.give_back()
                MutableHeaders(scope=message).update(meter.headers())
            await send(message)

        try:
            use = meter.begin()
        except ApiError as error:
            await refusal(scope, error)(scope, receive, send_with_headers)
            return
        set_use(scope, use)
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            use.end()
