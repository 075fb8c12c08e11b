"""Connections under limits: how many there are, and how long one may take to say what it wants.

Uvicorn waits for ever for the head of a request, and for its body. Here both have a time; beyond
the most connections one is told so and closed, before descriptors run out. A client that closes
its own side after the request still gets its answer.
"""

import asyncio
import logging
import resource
import time
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

SPARE_DESCRIPTORS = 128
"""Kept for files, the engine and the like."""
MOST_CONNECTIONS = 16_384
HEAD_S = 30.0
"""For the head of a request, from its first byte or from the beginning of a connection."""
PROBES_S = (0.0, 0.5, 10.0)
"""When a client that closed its side is looked for; the last one repeats."""
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)
_PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"

log = logging.getLogger("loire.server.connections")


def most_connections() -> int:
    """What the limit on descriptors of this process leaves for clients."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    known = MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - SPARE_DESCRIPTORS
    return max(min(known, MOST_CONNECTIONS), 16)


class RareLog:
    """Says each kind of thing once a minute, with how often it happened meanwhile."""

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._said: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str) -> None:
        """Note a thing of this kind."""
        now = time.monotonic()
        last, count = self._said.get(kind, (-self._every_s, 0))
        if now - last < self._every_s:
            self._said[kind] = (last, count + 1)
            return
        self._said[kind] = (now, 0)
        log.warning("%s%s", kind, f" ({count} more since the last line)" if count else "")


_rare = RareLog()


def note_loop_trouble(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """An exception handler for event loops: no descriptors are left for a while, thousands of times
    a second; the loop goes on accepting by itself."""
    error = context.get("exception")
    if isinstance(error, OSError) and "accept" in str(context.get("message")):
        _rare.warn(f"a connection could not be accepted: {error.strerror}")
    else:
        loop.default_exception_handler(dict(context))


class GuardedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # found at run time
    """Uvicorn's protocol for one connection, under limits."""

    max_connections = MOST_CONNECTIONS
    head_s = HEAD_S

    def connection_made(self, transport: asyncio.Transport) -> None:
        """A client is there; it has a time to ask for something."""
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None
        self._half_closed = False
        if len(self.connections) > self.max_connections:
            _rare.warn(f"{self.max_connections} connections are open: more are refused")
            text = (
                b'{"error": {"message": "too many connections are open", "type": "server_error"}}'
            )
            transport.write(_FULL % (len(text), text))
            transport.close()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """More of a request."""
        super().data_received(data)
        if self._is_answering():
            self._drop_head_timer()
        elif not self.transport.is_closing():
            self._expect_head()

    def eof_received(self) -> bool | None:
        """The client closed its side, or has gone altogether, which looks the same.

        An interim answer tells them apart: the system of one that has gone resets the connection.
        TLS has no half-closed connections.
        """
        if not self._is_answering() or self.transport.get_extra_info("ssl_object") is not None:
            return None
        self._half_closed = True
        self._look_for_client(0)
        return True

    def on_response_complete(self) -> None:
        """An answer was written."""
        super().on_response_complete()
        if self._half_closed and not self.transport.is_closing():
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._is_answering() and not self.transport.is_closing():
            self.transport.close()

    def _look_for_client(self, number: int) -> None:
        if not self._is_answering() or self.transport.is_closing():
            return
        if not self.cycle.response_started and self.scope["http_version"] == "1.1":
            self.transport.write(_PROCESSING)
        delay = PROBES_S[min(number + 1, len(PROBES_S) - 1)]
        self._probe = self.loop.call_later(delay, self._look_for_client, number + 1)

    def _drop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_timers(self) -> None:
        self._drop_head_timer()
        if self._probe is not None:
            self._probe.cancel()
