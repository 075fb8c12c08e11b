"""Files of the API on the disk: NAME holds the bytes, NAME.json what is known about them.

A file is there once its description is; bytes without one are what a crash left of an upload.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from loire.server.batches.disk import PART, storing, sync_folder, write_file
from loire.server.web.errors import ApiError
from loire.server.web.routes import MAX_FILE_BYTES

log = logging.getLogger("loire.server")

MAX_TENANT_BYTES = 16 * 2**30
"""Of all files of a tenant, before it may upload more."""
MAX_TENANT_FILES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """What is known about a file. created_at: Unix time."""

    id: str
    num_bytes: int
    created_at: int
    filename: str
    purpose: str
    tenant: str


class FileStore:
    """All files in one folder, which is made if need be. Raises OSError if that cannot be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, StoredFile] = {}
        folder.mkdir(parents=True, exist_ok=True)
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
        own = [file for file in tuple(self._files.values()) if file.tenant == tenant]
        return sorted(own, key=lambda file: (file.created_at, file.id), reverse=True)

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are."""
        return self.folder / file_id

    def begin(self, tenant: str) -> "Upload":
        """Start to receive a file. Raises ApiError: 413 if the tenant has too many, 507 ..."""
        own = self.list(tenant)
        num_bytes = sum(file.num_bytes for file in own)
        if len(own) >= MAX_TENANT_FILES or num_bytes >= MAX_TENANT_BYTES:
            raise ApiError(
                413,
                f"there are {len(own):,} files with {num_bytes:,} bytes already; at most "
                f"{MAX_TENANT_FILES:,} with {MAX_TENANT_BYTES:,} are kept: delete some",
                code="too_many_files",
            )
        return Upload(self, tenant)

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
        write_file(self._description(file_id), lambda out: out.write(msgspec.json.encode(file)))
        self._files[file_id] = file
        return file

    def delete(self, file: StoredFile) -> None:
        """Remove a file. Blocks. Raises OSError."""
        self._files.pop(file.id, None)
        self._description(file.id).unlink(missing_ok=True)
        sync_folder(self.folder)
        self.path(file.id).unlink(missing_ok=True)

    def _description(self, file_id: str) -> Path:
        return self.folder / f"{file_id}.json"

    def _load(self) -> None:
        for path in self.folder.glob("*.json"):
            try:
                file = msgspec.json.decode(path.read_bytes(), type=StoredFile)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("%s describes no file (%s): it is left out", path, error)
                continue
            if file.id == path.stem and self.path(file.id).is_file():
                self._files[file.id] = file
            else:
                log.warning("%s describes a file that is not there: it is left out", path)
        for path in self.folder.iterdir():
            unfinished = path.suffix == PART or not path.suffix
            if unfinished and path.name not in self._files and not self._described(path):
                path.unlink()

    def _described(self, path: Path) -> bool:
        """Whether something, even if it cannot be read, says that the file was complete."""
        return self._description(path.name).exists()


class Upload:
    """A file that is being received. Blocks on the disk: not for the event loop."""

    def __init__(self, store: FileStore, tenant: str) -> None:
        self._store = store
        self._tenant = tenant
        self._id = f"file-{uuid.uuid4().hex}"
        self._size = 0
        self._part = store.folder / (self._id + PART)
        with storing("keep the file"):
            # Without a buffer, so that nothing is left to be written, and to fail, on closing.
            self._file = self._part.open("wb", buffering=0)

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
                return self._store.describe(self._id, self._tenant, filename, purpose)
            except OSError:
                path.unlink()
                raise

    def close(self) -> None:
        """Whatever happened, leave nothing open and nothing unfinished behind."""
        self._file.close()
        self._part.unlink(missing_ok=True)
