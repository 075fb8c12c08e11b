"""The SQLite database of a server: what a transaction wrote is on the disk when it ends.

https://www.sqlite.org/wal.html: a process that is killed leaves whole transactions only.
"""

import errno
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from loire.server.storage.disk import make_private


class Database:
    """One connection, for several threads in turn. Blocks: not for the event loop.

    path: None keeps it in memory. All methods raise OSError (ENOSPC if the disk is full).
    """

    def __init__(self, path: Path | None) -> None:
        self._turn = Lock()
        self._where = ":memory:" if path is None else str(path)
        with self._as_os_errors():
            if path is not None:
                make_private(path)  # and so are the log and the index that SQLite keeps beside it
            # Transactions begin and end where transaction() says.
            self._connection = sqlite3.connect(
                self._where, isolation_level=None, check_same_thread=False
            )
            # Python would complain of one that is left open.
            weakref.finalize(self, self._connection.close)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done with the connection inside, or, after an exception, nothing of it."""
        with self._turn, self._as_os_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def write(self, statement: str, *values: Any) -> None:
        """One statement in a transaction of its own."""
        with self.transaction() as connection:
            connection.execute(statement, values)

    def read(self, query: str, *values: Any) -> list[Any]:
        """The rows that a query finds."""
        with self._turn, self._as_os_errors():
            return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        """Leave one file behind, without a log beside it."""
        with self._turn:
            self._connection.close()

    @contextmanager
    def _as_os_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise  # a mistake of the caller's
        except sqlite3.Error as error:
            full = "is full" in str(error)  # the code is known from Python 3.11 on
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), self._where) from error
