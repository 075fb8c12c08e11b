"""Files of the API: their bytes in a folder, what is known about them in the database.

A file is there once the database has it; bytes without a row are what a crash left of an upload.
"""

import logging
import os
import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from threading import Lock
from typing import IO

from loire.server.storage.database import Database
from loire.server.storage.disk import PART, make_private, open_private, storing, write_file
from loire.server.web.errors import ApiError
from loire.server.web.routes import MAX_FILE_BYTES

log = logging.getLogger("loire.server")

MAX_TENANT_BYTES = 16 * 2**30
"""Of all files of a tenant that has no limit of its own."""
MAX_TENANT_FILES = 10_000
KEPT_FREE_BYTES = 2**30
"""Of the disk, for all else that a server writes: uploads leave it, of a small disk a tenth."""
_OWN_NAME = re.compile(rf"file-[0-9a-f]{{32}}(-output|-errors)?({re.escape(PART)})?")
"""Of what a server writes here. Whatever else lies in the folder is somebody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """What is known about a file. created_at: Unix time."""

    id: str
    num_bytes: int
    created_at: int
    filename: str
    purpose: str
    tenant: str


_COLUMNS = ", ".join(field.name for field in fields(StoredFile))


class FileStore:
    """All files in one folder, which is made if need be. Raises OSError if that cannot be."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self._database = database
        self._files: dict[str, StoredFile] = {}
        self._of: dict[str, dict[str, StoredFile]] = {}
        """By tenant, in the order in which they came."""
        self._num_bytes: Counter[str] = Counter()
        """Of each tenant's."""
        self._uploads: dict[Upload, int] = {}
        """Those on their way in, with the bytes that have come."""
        self._counting = Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        database.write(
            "CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, num_bytes INTEGER, "
            "created_at INTEGER, filename TEXT, purpose TEXT, tenant TEXT)"
        )
        self._load()

    def get(self, file_id: str, tenant: str) -> StoredFile:
        """A file of this tenant. Raises ApiError (404)."""
        file = self._files.get(file_id)
        if file is None or file.tenant != tenant:
            raise ApiError(
                404, f"there is no file {file_id[:80]!r}", param="file_id", code="file_not_found"
            )
        return file

    def list(self, tenant: str) -> list[StoredFile]:
        """All files of this tenant, the newest first."""
        with self._counting:
            return [*reversed(self._of.get(tenant, {}).values())]

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are."""
        return self.folder / file_id

    def begin(self, tenant: str, max_bytes: int | None = None) -> "Upload":
        """Start to receive a file. max_bytes: of all that the tenant keeps, if it has such a limit.

        Raises ApiError: 413 if the tenant has too much, 507 if the disk is nearly full.
        """
        self.check_room(tenant, max_bytes, num_more=1)
        return Upload(self, tenant, max_bytes)

    def receives(self, upload: "Upload", num_bytes: int) -> None:
        """So many bytes of an upload are to be written. Raises ApiError as begin() does."""
        with self._counting:
            self._uploads[upload] = self._uploads.get(upload, 0) + num_bytes
        self.check_room(upload.tenant, upload.max_bytes)

    def received(self, upload: "Upload") -> None:
        """An upload is no more on its way."""
        with self._counting:
            self._uploads.pop(upload, None)

    def check_room(self, tenant: str, max_bytes: int | None, num_more: int = 0) -> None:
        """max_bytes: as in begin(). num_more: files that are to come.

        Raises ApiError: 413 if the tenant has more than it may, 507 if the disk is nearly full.
        """
        most = MAX_TENANT_BYTES if max_bytes is None else max_bytes
        with self._counting:
            coming = [size for upload, size in self._uploads.items() if upload.tenant == tenant]
            num_files = len(self._of.get(tenant, ()))
            num_bytes = self._num_bytes[tenant] + sum(coming)
        if num_files + len(coming) + num_more > MAX_TENANT_FILES or num_bytes > most:
            raise ApiError(
                413,
                f"there are {num_files:,} files of yours, with {num_bytes:,} bytes together with "
                f"what is on its way; at most {MAX_TENANT_FILES:,} with {most:,} bytes are kept: "
                f"delete some",
                code="too_many_files",
            )
        with storing("keep the file"):
            disk = shutil.disk_usage(self.folder)
        if disk.free < min(KEPT_FREE_BYTES, disk.total // 10):
            raise ApiError(
                507,
                f"cannot keep the file: the server's disk has {disk.free:,} bytes left; delete "
                f"files that are not needed, or make room",
                code="disk_full",
            )

    def put(
        self,
        file_id: str,
        tenant: str,
        filename: str,
        purpose: str,
        write: Callable[[IO[bytes]], object],
    ) -> StoredFile:
        """Make or replace a file of the server's own. Blocks. Raises OSError."""
        write_file(self.path(file_id), write)
        return self.describe(file_id, tenant, filename, purpose)

    def describe(self, file_id: str, tenant: str, filename: str, purpose: str) -> StoredFile:
        """Let a file whose bytes are on the disk be there. Blocks. Raises OSError."""
        file = StoredFile(
            id=file_id,
            num_bytes=self.path(file_id).stat().st_size,
            created_at=int(time.time()),
            filename=filename,
            purpose=purpose,
            tenant=tenant,
        )
        self._database.write(
            f"INSERT OR REPLACE INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", *astuple(file)
        )
        self._enter(file)
        return file

    def delete(self, file: StoredFile) -> None:
        """Remove a file. Blocks. Raises OSError."""
        self._database.write("DELETE FROM files WHERE id = ?", file.id)
        with self._counting:
            self._drop(file.id)
        self.path(file.id).unlink(missing_ok=True)

    def _enter(self, file: StoredFile) -> None:
        with self._counting:
            self._drop(file.id)
            self._files[file.id] = file
            self._of.setdefault(file.tenant, {})[file.id] = file
            self._num_bytes[file.tenant] += file.num_bytes

    def _drop(self, file_id: str) -> None:
        file = self._files.pop(file_id, None)
        if file is not None:
            del self._of[file.tenant][file_id]
            self._num_bytes[file.tenant] -= file.num_bytes

    def _load(self) -> None:
        for row in self._database.read(f"SELECT {_COLUMNS} FROM files ORDER BY created_at, id"):
            file = StoredFile(**dict(zip(_COLUMNS.split(", "), row, strict=True)))
            if self.path(file.id).is_file():
                make_private(self.path(file.id))  # earlier versions did not
                self._enter(file)
            else:
                log.warning("the bytes of file %s are not there: it is left out", file.id)
        for path in self.folder.glob("file-*"):
            described = path.name in self._files or path.with_name(f"{path.name}.json").exists()
            if _OWN_NAME.fullmatch(path.name) and (path.suffix == PART or not described):
                path.unlink()


class Upload:
    """A file that is being received. Blocks on the disk: not for the event loop."""

    def __init__(self, store: FileStore, tenant: str, max_bytes: int | None) -> None:
        self.tenant = tenant
        self.max_bytes = max_bytes
        self._store = store
        self._id = f"file-{uuid.uuid4().hex}"
        self._size = 0
        self._part = store.folder / (self._id + PART)
        with storing("keep the file"):
            # Without a buffer, so that nothing is left to be written, and to fail, on closing.
            self._file = open(  # noqa: SIM115  closed by close()
                self._part, "wb", buffering=0, opener=open_private
            )
        store.receives(self, 0)

    def write(self, data: bytes) -> None:
        """More of its bytes. Raises ApiError: 413 if they are too many, 507 if the disk is full."""
        self._size += len(data)
        if self._size > MAX_FILE_BYTES:
            raise ApiError(
                413,
                f"the file is larger than {MAX_FILE_BYTES:,} bytes: split it",
                param="file",
                code="file_too_large",
            )
        self._store.receives(self, len(data))
        left = memoryview(data)
        with storing("keep the file"):
            while left:
                left = left[self._file.write(left) :]

    def keep(self, filename: str, purpose: str) -> StoredFile:
        """It is complete. Raises ApiError: 400 if it is empty, 507 if the disk is full."""
        if not self._size:
            raise ApiError(400, "the file is empty", param="file", code="empty_file")
        with storing("keep the file"):
            os.fsync(self._file.fileno())
            self._file.close()
            path = self._part.replace(self._store.path(self._id))
            try:
                return self._store.describe(self._id, self.tenant, filename, purpose)
            except OSError:
                path.unlink()
                raise

    def close(self) -> None:
        """Whatever happened, leave nothing open and nothing unfinished behind."""
        self._file.close()
        self._part.unlink(missing_ok=True)
        self._store.received(self)
