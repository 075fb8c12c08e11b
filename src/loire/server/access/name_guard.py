"""Answers only to names of this server, and only to pages that may ask it."""

from starlette.types import ASGIApp, Receive, Scope, Send

from loire.server.access.names import KnownNames
from loire.server.web.errors import ApiError
from loire.server.web.refusals import refusal
from loire.server.web.routes import route_of


class NameGuard:
    """ASGI middleware: 403 for a foreign Host or Origin, before the body is read.

    Routes that are open to everybody tell nothing that is not; load balancers ask them by any name.
    """

    def __init__(self, app: ASGIApp, names: KnownNames) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "lifespan" and route_of(scope["path"]).open_to != "everybody":
            error = self._refusal(scope)
            if error is not None:
                await refusal(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        server = scope.get("server")
        hosts = _values(scope, b"host")
        for host in hosts:
            if not self._names.knows_host(host, None if server is None else server[0]):
                return ApiError(
                    403,
                    f"this server does not answer to the name {host[:200]!r}: if that is its own, "
                    f"start it with --allowed-host NAME",
                    code="host_not_allowed",
                )
        for origin in _values(scope, b"origin"):
            if not self._names.knows_origin(origin.lower(), hosts[0] if hosts else ""):
                return ApiError(
                    403,
                    f"pages of {origin[:200]!r} may not ask this server: if they should, start it "
                    f"with --allowed-origin ORIGIN",
                    code="origin_not_allowed",
                )
        return None


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for name, value in scope["headers"] if name == wanted]
