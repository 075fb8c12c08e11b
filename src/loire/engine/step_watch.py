"""Notices that an engine which has work says nothing for too long."""

import asyncio
import time
from collections.abc import Callable


class StepWatch:
    """Looks when the next step would be overdue, on one event loop, as long as there is work.

    limit_s: for how long the engine may say nothing now, in seconds; None if it has no work.
    on_hang: told how long it has said nothing, and the limit, once it is beyond that.
    """

    def __init__(
        self, limit_s: Callable[[], float | None], on_hang: Callable[[float, float], None]
    ) -> None:
        self._limit_s = limit_s
        self._on_hang = on_hang
        self._heard_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def heard(self) -> None:
        """The engine said something."""
        self._heard_s = time.monotonic()

    def begin(self) -> None:
        """The engine was given work."""
        if self._timer is None:
            self.heard()
            self._look()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        limit_s = self._limit_s()
        if limit_s is None:
            return
        silent_s = time.monotonic() - self._heard_s
        if silent_s >= limit_s:
            self._on_hang(silent_s, limit_s)
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(limit_s - silent_s, self._look)
