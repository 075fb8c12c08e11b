"""Threads and processes for work that nobody waits for step by step."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NICENESS = 10
_SESSIONS_HAVE_SHARES = Path("/proc/sys/kernel/sched_autogroup_enabled")
_SESSION_NICENESS = Path("/proc/self/autogroup")
_BUSY_S = 0.1
"""Linux lets all who are not root set one niceness of a session in so many seconds."""


def background_thread(name: str) -> ThreadPoolExecutor:
    """One thread, started with its first work, that lets all others go first, where threads have a
    priority of their own: a step does not take longer because it reads a file."""
    return ThreadPoolExecutor(1, name, initializer=_give_way)


def _give_way() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def give_way_in_own_session() -> None:
    """This process and all that it starts let others go first, whichever session those are in.

    Linux gives every session an equal share of its processors (autogroups), and weighs processes by
    how nice they are only within one: so a session must be nice as a whole. To be called before
    there are threads, by a process that leads no group. Where sessions have no shares, or where
    these cannot be set, its niceness alone counts.
    """
    os.setsid()
    os.nice(NICENESS)
    if not _sessions_have_shares():
        return
    while True:
        try:
            _SESSION_NICENESS.write_text(str(NICENESS))
        except BlockingIOError:
            time.sleep(_BUSY_S)
        else:
            return


def _sessions_have_shares() -> bool:
    try:
        on = _SESSIONS_HAVE_SHARES.read_text().strip() == "1"
    except OSError:  # no such system, or a container that hides it
        return False
    return on and os.access(_SESSION_NICENESS, os.W_OK)
