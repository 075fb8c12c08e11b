"""Connections under limits: how many there are, and how long one may take to say what it wants.

Uvicorn waits for ever for the head of a request, for its body, and for whoever does not read what
it is sent. Here all have a time; beyond the most connections one is told so and closed, before
descriptors run out. A client that closes its own side after the request still gets its answer, and
so does one that is answered before it has sent its body (linger.py).

The parser is h11, whatever else is installed: httptools has no bound on what a head may hold.
"""

import asyncio
import logging
import resource
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from loire.server.host.linger import Linger
from loire.server.observe.rare_log import RareLog

SPARE_DESCRIPTORS = 128
"""Kept for files, the engine and the like."""
MOST_CONNECTIONS = 16_384
HEAD_S = 30.0
"""For the head of a request, from its first byte or from the beginning of a connection."""
SEND_S = 120.0
"""For a client that takes nothing of its answer, with more than its system and ours hold for it."""
PIECE_BYTES = MAX_HEAD_BYTES = 16 * 1024
"""h11 refuses a head of which it has that much and not the end. It is given no more at a time: in a
quarter of a megabyte there may be 50,000 headers, which take a tenth of a second."""
FREE_PIECES = 1_000
PIECE_LEAST = 64
"""Bytes that pieces of a body must have on average, once there are more than FREE_PIECES."""
PROBES_S = (0.0, 0.5, 10.0)
"""When a client that closed its side is looked for; the last one repeats."""
_REFUSAL = (
    b"HTTP/1.1 %s\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)
_FULL = b'{"error": {"message": "too many connections are open", "type": "server_error"}}'
_NO_REQUEST = (
    b'{"error": {"message": "this is no HTTP/1.1 request, or its head has more than %d bytes, or '
    b'its body comes in pieces of less than %d", "type": "invalid_request_error"}}'
    % (MAX_HEAD_BYTES, PIECE_LEAST)
)
_PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"

log = logging.getLogger("loire.server.connections")


def most_connections() -> int:
    """What the limit on descriptors of this process leaves for clients."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    known = MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - SPARE_DESCRIPTORS
    return max(min(known, MOST_CONNECTIONS), 16)


_rare = RareLog(log)


def note_loop_trouble(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """An exception handler for event loops: no descriptors are left for a while, thousands of times
    a second; the loop goes on accepting by itself."""
    error = context.get("exception")
    if isinstance(error, OSError) and "accept" in str(context.get("message")):
        _rare.warn(f"a connection could not be accepted: {error.strerror}")
    else:
        loop.default_exception_handler(dict(context))


class _Reader(h11.Connection):
    """h11 that refuses a body in crumbs: each piece takes 4 us, if it is a single byte."""

    _num_pieces = _num_bytes = 0

    def next_event(self) -> Any:
        """What came next."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_pieces = self._num_bytes = 0
        elif isinstance(event, h11.Data):
            self._num_pieces += 1
            self._num_bytes += len(event.data)
            if self._num_pieces > FREE_PIECES and self._num_bytes < PIECE_LEAST * self._num_pieces:
                raise h11.RemoteProtocolError("the body comes in too many pieces")
        return event


class _Transport:
    """A transport of which closing is the protocol's business: uvicorn closes it with an answer,
    whatever the client is still sending."""

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[], None], closes: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self.close = close
        self._closes = closes

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closes() or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class GuardedProtocol(H11Protocol):
    """Uvicorn's protocol for one connection, under limits."""

    max_connections = MOST_CONNECTIONS
    head_s = HEAD_S
    send_s = SEND_S
    _may_linger = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; it has a time to ask for something."""
        super().connection_made(transport)
        self._wire = transport
        self.transport = cast(
            asyncio.Transport, _Transport(transport, self._close, lambda: self._is_closing)
        )
        self.conn = _Reader(h11.SERVER, MAX_HEAD_BYTES)
        self._head_timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._half_closed = False
        self._later = bytearray()
        """What came behind a request that is being answered."""
        self._linger: Linger | None = None
        """While a client sends what nobody reads."""
        self._is_closing = False
        """Whether all that comes is dropped."""
        if len(self.connections) > self.max_connections:
            _rare.warn(f"{self.max_connections} connections are open: more are refused")
            self._refuse(b"503 Service Unavailable\r\nRetry-After: 1", _FULL)
            self._close()  # at once: it has one of the spare descriptors
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._cancel_timers()
        self._is_closing = True
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends: nobody is waited for."""
        self._may_linger = False
        if self._is_closing:
            self._cut()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """More of a request, or of what is dropped."""
        for place in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():
                break
            if self._later or (self._is_answering() and not self.cycle.more_body):
                self._later += data[place:]
                self.flow.pause_reading()
                break
            super().data_received(data[place : place + PIECE_BYTES])
        if self._linger is not None and not self._is_closing and not self._owes_body():
            self._end_linger()  # and the connection goes on
        if self._linger is not None:
            self._linger.take(len(data))
        if self._is_answering() or self._linger is not None:
            self._drop_head_timer()
        elif not self.transport.is_closing():
            self._expect_head()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.send_s, self._leave_client)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._drop_stuck_timer()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client closed its side, or has gone altogether, which looks the same.

        An interim answer tells them apart: the system of one that has gone resets the connection.
        TLS has no half-closed connections.
        """
        if not self._is_answering():
            return None
        if self.transport.get_extra_info("ssl_object") is not None:
            return None
        self._half_closed = True
        self._look_for_client(0)
        return True

    def on_response_complete(self) -> None:
        """An answer was written."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._half_closed:
            self.transport.close()
        elif self._owes_body():
            self.cycle.body.clear()
            self._linger = Linger(self.flow, self._cut)
        elif self._later:
            later, self._later = bytes(self._later), bytearray()
            self.data_received(later)

    def send_400_response(self, msg: str) -> None:
        """What came is no request. If an answer is on its way, it ends there."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(b"400 Bad Request", _NO_REQUEST)
        else:
            self.transport.close()

    def _refuse(self, status: bytes, text: bytes) -> None:
        if self._is_answering():  # whoever answers hears that nobody listens
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._wire.write(_REFUSAL % (status, len(text), text))
        self._close_slowly()

    def _close(self) -> None:
        """What uvicorn asks for: after an answer, or because the client is gone or late."""
        sends = (self._owes_body() or self._later) and not self._half_closed
        if sends and self._linger is None and self._may_linger and not self._is_closing:
            self._close_slowly()
        else:
            self._cut()

    def _close_slowly(self) -> None:
        """Write nothing more, and read until the client has read that, or for a while."""
        self._is_closing = True
        self._later.clear()
        if self._wire.can_write_eof():
            self._wire.write_eof()
        self._linger = Linger(self.flow, self._cut)
        self.flow.resume_reading()

    def _cut(self) -> None:
        """At once: if something is unread, the client may lose what it was sent."""
        self._end_linger()
        self._is_closing = True
        self._wire.close()

    def _end_linger(self) -> None:
        if self._linger is not None:
            self._linger.end()
            self._linger = None
            self.flow.resume_reading()

    def _owes_body(self) -> bool:
        """Whether there is more of the body of a request that was answered."""
        answered = self.cycle is not None and self.cycle.response_complete
        return answered and self.conn.their_state is h11.SEND_BODY

    def _is_answering(self) -> bool:
        """Whether an answer is on its way to a client that may take it."""
        answers = self.cycle is not None and not self.cycle.response_complete
        return answers and not self._is_closing

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

    def _leave_client(self) -> None:
        """Drop what it was to be sent, also what the system holds."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _drop_stuck_timer(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _cancel_timers(self) -> None:
        self._drop_head_timer()
        self._drop_stuck_timer()
        self._end_linger()
        if self._probe is not None:
            self._probe.cancel()
