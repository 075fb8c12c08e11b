"""Fields that were taken without effect, named in the answer: `x-loire-ignored: verbosity`."""

import logging
import re
from contextvars import ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-loire-ignored"
MAX_NAMES = 32
"""Names in one header; more are counted."""
MAX_LOGGED = 1_000
"""Names that are remembered as logged."""

log = logging.getLogger("loire.server.ignored")

_names: ContextVar[dict[str, None] | None] = ContextVar("ignored fields of this call", default=None)
_HARMLESS = re.compile(r"[A-Za-z0-9_.$-]{1,64}")


def note_ignored(name: str) -> None:
    """A field of the request that is just being read has no effect."""
    names = _names.get()
    if names is not None and len(names) <= MAX_NAMES:
        names[name if _HARMLESS.fullmatch(name) else "(a strange name)"] = None


class IgnoredFields:
    """ASGI middleware: names ignored fields in the answer's head, and each once in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        names: dict[str, None] = {}

        async def send_with_names(message: Message) -> None:
            if message["type"] == "http.response.start" and names:
                MutableHeaders(scope=message)[HEADER] = _written(names)
                self._log(names, scope["path"])
            await send(message)

        token = _names.set(names)
        try:
            await self._app(scope, receive, send_with_names)
        finally:
            _names.reset(token)

    def _log(self, names: dict[str, None], path: str) -> None:
        for name in names:
            if name not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add(name)
                log.info("%s takes the field %r without effect (said once)", path, name)


def _written(names: dict[str, None]) -> str:
    shown = list(names)[:MAX_NAMES]
    return ", ".join(shown + ["..."] * (len(names) > MAX_NAMES))
