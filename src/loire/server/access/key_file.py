"""Changing a key file: a key is added or revoked in one go, and all else in it stays as it is."""

import os
import secrets
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO

from loire.base.errors import ConfigError
from loire.server.access.keys import ApiKey, KeyRing, adapter_words, parse_key
from loire.server.access.rates import Limits
from loire.server.storage.disk import write_file

KEY_BYTES = 32


def new_key() -> str:
    """A key that nobody can guess: 64 hexadecimal digits."""
    return secrets.token_hex(KEY_BYTES)


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file. Raises ConfigError if it cannot be read, or if a line is wrong."""
    return [key for _, key in _read(path) if key is not None]


def add_key(path: Path, key: ApiKey) -> None:
    """Write a key's name, hash, limits and adapters at the end of a file, which is made if need be.

    Raises ConfigError if the file has a key of that name or hash, is wrong or cannot be written.
    """
    lines = _read(path) if path.exists() else []
    KeyRing([*(known for _, known in lines if known is not None), key])
    words = (*limit_words(key.limits), *adapter_words(key.adapters))
    text = " ".join((f"{key.name}:sha256:{key.digest.hex()}", *words))
    _write(path, [*(line for line, _ in lines), text])


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from a file. Raises ConfigError if it is not there, or as add_key() does."""
    lines = _read(path)
    names = [key.name for _, key in lines if key is not None]
    if name not in names:
        known = ", ".join(names) or "none"
        raise ConfigError(f"{path} has no key {name!r}; it has {known}")
    _write(path, [line for line, key in lines if key is None or key.name != name])


def limit_words(limits: Limits) -> list[str]:
    """Limits as they stand after a key."""
    given = ((field.name, getattr(limits, field.name)) for field in fields(Limits))
    return [f"{name.replace('_', '-')}={value}" for name, value in given if value is not None]


def _read(path: Path) -> list[tuple[str, ApiKey | None]]:
    """Lines, and the keys in them."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key file {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        key = None
        if text and not text.startswith("#"):
            key = parse_key(text, place=f"{path}, line {number}")
        found.append((line, key))
    return found


def _write(path: Path, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    target = path.resolve()  # where a link leads, so that it stays one

    def write(file: IO[bytes]) -> None:
        if os.name != "nt" and os.geteuid() == 0 and target.exists():
            owner = target.stat()  # the server's user goes on reading what root changes
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(text.encode())

    try:
        write_file(target, write)
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be written: {error}") from error
