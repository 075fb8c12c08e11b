"""Ctrl-C and SIGTERM: of a process that starts, and of those that it starts."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def end_at_once() -> Iterator[None]:
    """While nothing is there to be finished, a signal ends the process without a word.

    Python would raise KeyboardInterrupt wherever it is, also where that is only printed. To be
    used on the main thread; signals that are ignored stay so.
    """
    before = {number: signal.getsignal(number) for number in STOPS}
    ours = [number for number in STOPS if before[number] is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _end(number: int, frame: FrameType | None) -> None:
    """By the signal itself, which tells a shell how; the first process of a container does not
    die of one.
    """
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


@contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Processes that are started here begin with these signals blocked.

    A terminal sends Ctrl-C to all of its processes, also to one that has yet to say that it ignores
    it: leave_to_parent() there ends what begins here.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent(*numbers: signal.Signals) -> None:
    """Ignore signals from now on, and what came of them while they were held back."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
