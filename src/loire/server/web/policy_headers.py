"""Headers that tell browsers what an answer is not: a page, a frame, a part of another site."""

from collections.abc import MutableSequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = b"content-security-policy"
HEADERS = (
    (_POLICY, b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""What any answer has that says nothing else itself. An answer that a browser opens as a page, such
as a file that somebody uploaded, runs nothing and loads nothing."""


class PolicyHeaders:
    """ASGI middleware: adds the headers that an answer lacks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: MutableSequence[tuple[bytes, bytes]] = message.setdefault("headers", [])
                given = {name.lower() for name, _ in headers}
                headers += [header for header in HEADERS if header[0] not in given]
            await send(message)

        await self._app(scope, receive, send_with_policy)
