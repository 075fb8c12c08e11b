"""Threads for work that nobody waits for step by step."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

NICENESS = 10


def background_thread(name: str) -> ThreadPoolExecutor:
    """One thread, started with its first work, that lets all others go first, where threads have a
    priority of their own: a step does not take longer because it reads a file."""
    return ThreadPoolExecutor(1, name, initializer=_give_way)


def _give_way() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
