"""Threads for work of unknown length in libraries, such as reading a tokenizer's file.

They do not keep the process from ending. But while Python takes itself apart, libraries in Rust
panic aloud, or abort: so a process that may have some at work ends by end_process().
"""

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

Work = Callable[[], None]

_at_work: set[object] = set()


class ForeignThreads:
    """Threads of one name, kept for the next work: a new one would have whoever starts it wait
    until it runs, and itself for a processor behind all who compute."""

    def __init__(self, name: str, most_idle: int = 8) -> None:
        self._name = name
        self._most_idle = most_idle
        self._num_idle = 0
        self._lock = threading.Lock()
        self._given: SimpleQueue[Work] = SimpleQueue()

    def start(self, work: Work) -> None:
        """Start work on a thread that has none."""
        at_work = object()
        _at_work.add(at_work)

        def noted() -> None:
            try:
                work()
            finally:
                _at_work.discard(at_work)

        with self._lock:
            finds_one = self._num_idle > 0
            self._num_idle -= finds_one
        if finds_one:
            self._given.put(noted)
        else:
            threading.Thread(target=self._run, args=(noted,), name=self._name, daemon=True).start()

    def _run(self, work: Work) -> None:
        while True:
            work()
            del work  # and what it holds
            with self._lock:
                if self._num_idle >= self._most_idle:
                    return
                self._num_idle += 1
            work = self._given.get()


def foreign_thread(name: str, work: Work) -> None:
    """Start work on a thread of that name, which ends with it."""
    ForeignThreads(name, most_idle=0).start(work)


def end_process(status: int) -> int:
    """The status to end with, once all else is done.

    Ends the process here if there is still work on such a thread.
    """
    if _at_work:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    return status
