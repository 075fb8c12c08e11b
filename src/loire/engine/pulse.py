"""Notices when whoever gives signs of life all the time gives none any more.

Silence is counted in looks of our own event loop, and not read from a clock: in time in which this
process itself stood still, or was kept from the processor, nobody listened.
"""

import asyncio
import math
from collections.abc import Callable

BEAT_S = 0.5
"""Between two signs of life, and between two looks for them."""
MOST_SILENCE_S = 5.0
"""Ten signs of life. A process that shares two cores with ten others comes to one of them every
some 100 ms."""


class Pulse:
    """Listens from start() to stop(), on one event loop.

    limit_s: how long nothing may be heard. on_silent: told how long it has been, in seconds, at
    each look from then on until something is heard.
    """

    def __init__(self, limit_s: float, on_silent: Callable[[float], None]) -> None:
        self._most_looks = max(math.ceil(limit_s / BEAT_S), 1)
        self._on_silent = on_silent
        self._num_looks = 0
        """In vain, one after the other."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_silent(self) -> bool:
        """Whether nothing was heard for longer than the limit."""
        return self._num_looks >= self._most_looks

    def start(self) -> None:
        """Begin to listen, as if something had been heard just now."""
        self.stop()
        self._later()

    def stop(self) -> None:
        """Listen no more."""
        self._num_looks = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def heard(self) -> None:
        """Something came."""
        self._num_looks = 0

    def look(self) -> None:
        """Done every BEAT_S: that much more has gone without a word, unless heard() is called."""
        self._later()
        self._num_looks += 1
        if self.is_silent:
            self._on_silent(self._num_looks * BEAT_S)

    def _later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self.look)
