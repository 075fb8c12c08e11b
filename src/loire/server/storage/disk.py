"""Files that are whole after a crash, and what a client hears of a full disk."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from loire.server.web.errors import ApiError

PART = ".part"
"""Ends the names of files that are not complete; those of an earlier process can be removed."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk, or a used-up share of it, is called."""


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Make or replace a file in one go; when this returns, it is on the disk. Raises OSError.

    Nobody but its owner can read it.
    """
    part = path.with_name(path.name + PART)
    try:
        with open(part, "wb", opener=open_private) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def open_private(path: str, flags: int) -> int:
    """An opener for open(): a file that is made has rights for its owner only."""
    return os.open(path, flags, 0o600)


def make_private(path: Path) -> None:
    """See to it that a file is there, and that nobody but its owner can read it, whatever the
    folder allows. Raises OSError, also for a link, which others may have put there; not for a file
    of somebody else's, whose rights are left."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        if os.name != "nt" and os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on the disk."""
    if os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Tell the client if the disk fails: ApiError 507 if it is full, else 500."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error


def storage_error(error: OSError, what: str) -> ApiError:
    """What a client is told when the disk fails. what: such as "keep the file"."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in FULL:
        return ApiError(
            507,
            f"cannot {what}: the server's disk is full{where}; delete files that are not needed, "
            f"or make room",
            code="disk_full",
        )
    return ApiError(500, f"cannot {what}: {error.strerror}{where}", code="storage_failed")
