"""Lines of the log that strangers can bring about as often as they like: few are written."""

import logging
import time
from collections.abc import Callable


class RareLog:
    """Says each kind of thing once a minute, with how often it happened meanwhile."""

    def __init__(self, log: logging.Logger, every_s: float = 60.0) -> None:
        self._log = log
        self._every_s = every_s
        self._said: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str) -> None:
        """Note a thing of this kind."""
        if (missed := self.missed(kind)) is not None:
            self._log.warning("%s%s", kind, _and(missed))

    def missed(self, kind: str) -> int | None:
        """Note a thing of this kind; if it is to be said, how often it was not since the last."""
        now = time.monotonic()
        last, count = self._said.get(kind, (-self._every_s, 0))
        if now - last < self._every_s:
            self._said[kind] = (last, count + 1)
            return None
        self._said[kind] = (now, 0)
        return count


class RareLines(logging.Filter):
    """Lets each warning of a logger through once a minute. Errors, and what has a traceback, are
    never many for reasons of others."""

    def __init__(self, every_s: float = 60.0) -> None:
        super().__init__()
        self._rare = RareLog(logging.getLogger(), every_s)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        if record.levelno != logging.WARNING or record.exc_info:
            return True
        message = record.getMessage()
        missed = self._rare.missed(message)
        if missed is None:
            return False
        record.msg, record.args = f"{message}{_and(missed)}", ()
        return True


class FewOfMany:
    """Notes of the same kind, so many a minute; the others are counted."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._began_s = clock()
        self._num_noted = self._num_missed = 0

    def take(self) -> int | None:
        """There is one more; if it is to be noted, how many were not since the last that was."""
        now = self._clock()
        if now - self._began_s >= 60:
            self._began_s, self._num_noted = now, 0
        if self._num_noted == self._per_minute:
            self._num_missed += 1
            return None
        self._num_noted += 1
        missed, self._num_missed = self._num_missed, 0
        return missed


def _and(missed: int) -> str:
    return f" ({missed} more since the last line)" if missed else ""
