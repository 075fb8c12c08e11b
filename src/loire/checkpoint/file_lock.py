"""A lock between processes, held on a file; the system lets go of it when a process dies.

The library filelock (4.3.1) takes a file whose mere presence is the lock where the file system has
no others: whoever dies with it locks everybody out. Here such a place is refused.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.2

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def file_lock(path: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on path, which is made if need be and stays; calls back while others hold it.

    Raises OSError if the file cannot be made or locks are not supported there.
    """
    # Who may read it could hold it.
    with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        while not _try_lock(file.fileno()):
            while_waiting()
            time.sleep(POLL_S)
        yield  # closing the file lets go
