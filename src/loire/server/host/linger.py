"""What a client still sends when its answer is there already: read and dropped, under limits.

Whoever closes a connection of which something is unread resets it, and the reset takes the answer
from a client that has not come to read it. So an early answer is followed by a lingering close, as
in nginx: reading goes on for a while. Of all connections together so many bytes a second are read,
which bounds what that costs; beyond it clients wait for one another.
"""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

LINGER_BYTES = 256 * 2**20
"""Of one connection: more than the largest body that any route reads."""
LINGER_S = 30.0
LINGER_IDLE_S = 5.0
"""Without a byte, once or twice as long at most."""
LINGER_BYTES_PER_S = 128 * 2**20
"""Of all connections."""
FREE_WAIT_S = 0.02
"""Shorter waits are not worth a timer."""


class Pace:
    """A rate that many share: whoever took something waits until it is paid for."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._paid_s = 0.0

    def wait_s(self, amount: float, now_s: float) -> float:
        """For how long whoever takes so much now shall take no more."""
        self._paid_s = max(self._paid_s, now_s) + amount / self._per_s
        return self._paid_s - now_s


_pace = Pace(LINGER_BYTES_PER_S)


class Linger:
    """The limits for one connection, from its answer to the end of what the client sends.

    cut: called once, when the client has gone beyond them.
    """

    def __init__(self, flow: FlowControl, cut: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._flow = flow
        self._cut = cut
        self._bytes_left = LINGER_BYTES
        self._end_s = self._loop.time() + LINGER_S
        self._is_idle = True
        self._watch = self._loop.call_later(LINGER_IDLE_S, self._look)
        self._pause: asyncio.TimerHandle | None = None

    def take(self, num_bytes: int) -> None:
        """So many came, and were dropped."""
        self._is_idle = False
        self._bytes_left -= num_bytes
        wait_s = _pace.wait_s(num_bytes, self._loop.time())
        if self._bytes_left < 0:
            self._cut()
        elif wait_s > FREE_WAIT_S:
            self._flow.pause_reading()
            self._pause = self._loop.call_later(wait_s, self._flow.resume_reading)

    def end(self) -> None:
        """The client sends no more of it, or is cut."""
        self._watch.cancel()
        if self._pause is not None:
            self._pause.cancel()

    def _look(self) -> None:
        left_s = self._end_s - self._loop.time()
        if self._is_idle or left_s <= 0.0:
            self._cut()
            return
        self._is_idle = True
        self._watch = self._loop.call_later(min(LINGER_IDLE_S, left_s), self._look)
