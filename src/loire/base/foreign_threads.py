"""Threads for work of unknown length in libraries, such as reading a tokenizer's file.

They do not keep the process from ending. But while Python takes itself apart, libraries in Rust
panic aloud, or abort: so a process that may have some ends by end_process().
"""

import os
import sys
import threading
from collections.abc import Callable

_threads: list[threading.Thread] = []


def foreign_thread(name: str, work: Callable[[], None]) -> None:
    """Start work on a thread of that name."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    _threads[:] = [*filter(threading.Thread.is_alive, _threads), thread]
    thread.start()


def end_process(status: int) -> int:
    """The status to end with, once all else is done.

    Ends the process here if there is still work on such a thread.
    """
    if any(thread.is_alive() for thread in _threads):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    return status
