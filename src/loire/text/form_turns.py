"""Whose constraint is compiled next."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from loire.base.errors import BusyError, LoireError

MAX_AT_ONCE = 2
"""Constraints that are compiled at the same time; of one share, one."""
SLOW_S = 1.0
"""By the clock: what is not compiled by then lets others have its place."""
MAX_SLOW = 2
"""Constraints that are compiled beside them and gave up their places."""
LOOK_S = 0.1
"""Between two looks at whether one has."""
MAX_WAITING = 16
"""Constraints of one share that wait for their turn."""


class NobodyWaitsError(LoireError):
    """Whoever asked has gone."""

    def __init__(self) -> None:
        super().__init__("nobody waits for this constraint any more")


class FormTurns:
    """Who compiles: a few at a time, of each share one, and no crowd waits. Safe for threads.

    Shares take turns: the one that has waited longest since its last turn comes next, however many
    the others have in line. Few constraints take long; where those that do had all places, a small
    one would wait for seconds.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._active: dict[str, float] = {}
        """Since when the constraint of each share is compiled, in monotonic seconds."""
        self._waiting: Counter[str] = Counter()
        self._since: dict[str, int] = {}
        """Of each share that waits: when it began to, or had its last turn."""
        self._clock = itertools.count()

    @contextmanager
    def turn(self, share: str, abandoned: "Future[None] | None" = None) -> Iterator[None]:
        """Wait for a turn, and have it.

        Raises BusyError if too many of the share wait, NobodyWaitsError once abandoned is done.
        """
        if abandoned is not None:
            abandoned.add_done_callback(lambda _: self._wake())
        with self._changed:
            self._join(share)
            gone = False

            def done_waiting() -> bool:
                nonlocal gone
                gone = abandoned is not None and abandoned.done()
                return gone or self._is_next(share)

            while not done_waiting():
                self._changed.wait(LOOK_S)
            self._leave(share)
            if gone:
                self._changed.notify_all()
                raise NobodyWaitsError
            self._active[share] = time.monotonic()
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                del self._active[share]
                self._changed.notify_all()

    def _join(self, share: str) -> None:
        if self._waiting[share] >= MAX_WAITING:
            raise BusyError(
                f"{MAX_WAITING} other constraints wait for their turn to be compiled, which is "
                f"the most: send it again when some of them are answered"
            )
        self._waiting[share] += 1
        self._since.setdefault(share, next(self._clock))

    def _leave(self, share: str) -> None:
        self._waiting[share] -= 1
        if self._waiting[share]:
            self._since[share] = next(self._clock)
        else:
            del self._waiting[share], self._since[share]

    def _is_next(self, share: str) -> bool:
        slow_since = time.monotonic() - SLOW_S
        num_slow = sum(since <= slow_since for since in self._active.values())
        num_places = len(self._active) - min(num_slow, MAX_SLOW)
        if share in self._active or num_places >= MAX_AT_ONCE:
            return False
        idle = (other for other in self._since if other not in self._active)
        return min(idle, key=self._since.__getitem__) == share

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
