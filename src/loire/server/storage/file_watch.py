"""Files that are read again when they change: keys and certificates."""

import asyncio
import logging
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from loire.base.errors import ConfigError

EVERY_S = 1.0
MAX_BYTES = 2**24
"""Of a file: 100,000 keys, or more certificates than there are in any chain."""

log = logging.getLogger("loire.server")

Signature = tuple[int, int, int, int]


class FileWatch:
    """Looks at files once a second, and has them read when one is another than before.

    read_again: reads them and puts what they say in force, or raises ConfigError and changes
    nothing; called on a thread. It is tried until it succeeds, and each reason why not is logged
    once. else_holds: what is said to be in force meanwhile.
    """

    def __init__(
        self, files: Sequence[Path], read_again: Callable[[], None], else_holds: str
    ) -> None:
        self._files = tuple(files)
        self._read_again = read_again
        self._else_holds = else_holds
        self._seen: tuple[Signature | None, ...] = ()
        self._said: str | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.to_thread(self.check)
            await asyncio.sleep(EVERY_S)

    def check(self) -> None:
        """Have the files read if any was written, replaced, removed or given other rights."""
        found = tuple(map(_signature, self._files))
        if found == self._seen and self._said is None:
            return
        try:
            self._check_kinds()
            self._read_again()
        except ConfigError as error:
            if str(error) != self._said:
                log.error("%s; %s", error, self._else_holds)
            self._said = str(error)
            return
        self._seen, self._said = found, None

    def _check_kinds(self) -> None:
        """A pipe or a device might never end, and a file might be larger than memory."""
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                continue  # why, reading it tells
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path} is no regular file")
            if status.st_size > MAX_BYTES:
                raise ConfigError(
                    f"{path} has {status.st_size:,} bytes, but no more than {MAX_BYTES:,} are read"
                )


def _signature(path: Path) -> Signature | None:
    """Changes with the file, also where its length and the second of its writing stay the same."""
    try:
        status = path.stat()
    except OSError:
        return None  # why, reading it tells
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
