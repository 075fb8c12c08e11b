"""The folder in which a server keeps files and batches, for itself alone.

Nothing is made, and nothing locked, before the first call that needs it, so that servers which
keep nothing can share the default folder.
"""

import asyncio
import logging
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Annotated, NoReturn

from fastapi import Depends, Request

from loire.checkpoint.file_lock import file_lock
from loire.server.batches.file_store import FileStore
from loire.server.batches.record import BatchStore
from loire.server.storage.database import Database
from loire.server.storage.disk import storing
from loire.server.web.errors import ApiError

log = logging.getLogger("loire.server")

DATABASE = "batches.sqlite"


class DataFolder:
    """Opened at first use, which reads the folder: not for the event loop. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stores: tuple[FileStore, BatchStore] | None = None
        self._opening = Lock()
        self._held = ExitStack()
        self.deciding = asyncio.Lock()
        """Held from asking whether a batch reads a file to acting on the answer."""

    @property
    def files(self) -> FileStore:
        """The files. Raises ApiError: 503 if another server has the folder, 507 or 500."""
        return self._opened()[0]

    @property
    def batches(self) -> BatchStore:
        """The batches. Raises ApiError as files does."""
        return self._opened()[1]

    @property
    def has_batches(self) -> bool:
        """Whether files, and batches perhaps, were ever kept here."""
        return (self.path / DATABASE).is_file()

    def open(self) -> None:
        """Read the folder, unless that was done. Raises ApiError as files does."""
        self._opened()

    def close(self) -> None:
        """Let others have the folder."""
        with self._opening:
            self._stores = None
            self._held.close()

    def _opened(self) -> tuple[FileStore, BatchStore]:
        with self._opening:
            if self._stores is None:
                self._stores = self._open()
            return self._stores

    def _open(self) -> tuple[FileStore, BatchStore]:
        with storing(f"use the folder {self.path}"):
            # What is asked is nobody else's business.
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with ExitStack() as stack:
                stack.enter_context(file_lock(self.path / "lock", self._refuse))
                database = Database(self.path / DATABASE)
                stack.callback(database.close)
                stores = FileStore(self.path / "files", database), BatchStore(database)
                self._held = stack.pop_all()
                return stores

    def _refuse(self) -> NoReturn:
        raise ApiError(
            503,
            f"another server keeps its files in {self.path}: start this one with a --data-dir of "
            f"its own",
            code="data_dir_in_use",
        )


async def _opened(request: Request) -> DataFolder:
    folder: DataFolder = request.app.state.data
    await asyncio.to_thread(folder.open)
    return folder


Data = Annotated[DataFolder, Depends(_opened)]
"""A route's parameter: where its app keeps files and batches, opened. Raises ApiError as open()."""
