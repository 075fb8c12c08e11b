"""Time that passes from one event to the next."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class SimulatedTime:
    """Simulated time: what happens when."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, time_s: float, happen: Callable[[], None]) -> None:
        """Call something then; what is due at the same time comes in the order of these calls."""
        heappush(self._events, (time_s, next(self._order), happen))

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Call something so many seconds from now."""
        self.at(self.now_s + seconds, happen)

    def advance(self) -> None:
        """To the next event, which happens."""
        self.now_s, _, happen = heappop(self._events)
        happen()
