"""API keys: who may ask, and as which tenant. Only their SHA-256 hashes are kept.

A key is written as KEY, NAME:KEY or NAME:sha256:HEX. Limits of its own may follow it:
requests-per-minute=60 tokens-per-minute=100000 concurrency=8 (or =none for no limit). Its name is
its tenant's name: it stands in logs and metrics, the key itself never does. Plain SHA-256 suits
keys that nobody can guess, such as those of `openssl rand -hex 32`; it would not suit passwords
that people think up.
"""

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from loire.base.errors import ConfigError
from loire.server.access.rates import NO_LIMITS, Limits

KEY_VARIABLE = "LOIRE_API_KEY"
ADMIN_VARIABLE = "LOIRE_ADMIN_KEY"
"""Environment variables with keys, separated by commas."""

SHORTEST_KEY = 16
"""Characters; a shorter key could be found by trying."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-9;-~]{1,512}")
"""Printable ASCII without space and colon: what a header can carry."""
_LIMIT_NAMES = tuple(field.name for field in fields(Limits))
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that was given out. admin: it also opens what shows other tenants' requests."""

    name: str
    digest: bytes
    admin: bool = False
    limits: Limits = NO_LIMITS


class KeyRing:
    """All keys of a server; without any, everybody may ask.

    Raises ConfigError if two have the same name, or are the same.
    """

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self.keys = tuple(keys)
        names: set[str] = set()
        digests: dict[bytes, str] = {}
        for key in self.keys:
            if key.name in names:
                raise ConfigError(f"two keys have the name {key.name!r}: each needs its own")
            if key.digest in digests:
                raise ConfigError(f"{digests[key.digest]!r} and {key.name!r} have the same key")
            names.add(key.name)
            digests[key.digest] = key.name

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, presented: bytes) -> ApiKey | None:
        """The key that was presented. Takes as long for a wrong key as for any right one."""
        digest = hashlib.sha256(presented).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


@dataclass(frozen=True, slots=True)
class KeySources:
    """Where keys come from.

    key_files, admin_key_files: text files, one key a line; empty lines and lines that begin with #
    are skipped. keys: as given on the command line.
    """

    key_files: Sequence[Path] = ()
    admin_key_files: Sequence[Path] = ()
    keys: Sequence[str] = ()

    def read(
        self, environment: Mapping[str, str] = os.environ, limits: Limits = NO_LIMITS
    ) -> KeyRing:
        """All keys. Raises ConfigError, which names the place and never repeats a key.

        limits: of keys that say nothing about theirs.
        """
        sources = (
            *(_lines(path, admin=False) for path in self.key_files),
            *(_lines(path, admin=True) for path in self.admin_key_files),
            _variable(environment, KEY_VARIABLE, admin=False),
            _variable(environment, ADMIN_VARIABLE, admin=True),
            [("--api-key", text, False) for text in self.keys],
        )
        keys: list[ApiKey] = []
        for source in sources:
            for place, text, admin in source:
                unnamed = f"admin-{len(keys) + 1}" if admin else f"key-{len(keys) + 1}"
                keys.append(
                    parse_key(text, place=place, admin=admin, unnamed=unnamed, limits=limits)
                )
        return KeyRing(keys)


def parse_key(
    text: str,
    *,
    place: str,
    admin: bool = False,
    unnamed: str = "key",
    limits: Limits = NO_LIMITS,
) -> ApiKey:
    """A key from KEY, NAME:KEY or NAME:sha256:HEX, with limits after it.

    place: for error messages, which never repeat the key. unnamed: the name of one without a name.
    limits: what it has where the text says nothing. Raises ConfigError.
    """
    words = text.split() or [""]
    limits = _limits(words[1:], limits, place)
    name, colon, rest = words[0].partition(":")
    if not colon:
        name, rest = unnamed, words[0]
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{place}: the name before the colon must have 1 to 64 letters, digits, '.', '_' or "
            f"'-', and begin with a letter or digit"
        )
    kind, hashed, digest = rest.partition(":")
    if hashed:
        if kind != "sha256" or not _DIGEST.fullmatch(digest):
            raise ConfigError(
                f"{place}: after {name!r} there must be a key without colons, or sha256: and 64 "
                f"hexadecimal digits"
            )
        return ApiKey(name, bytes.fromhex(digest), admin, limits)
    if not _KEY.fullmatch(rest):
        raise ConfigError(
            f"{place}: the key of {name!r} must have 1 to 512 printable ASCII characters, but "
            f"has {len(rest)}"
        )
    if len(rest) < SHORTEST_KEY:
        raise ConfigError(
            f"{place}: the key of {name!r} has {len(rest)} characters, but at least "
            f"{SHORTEST_KEY} are needed: make one with `openssl rand -hex 32`"
        )
    return ApiKey(name, hashlib.sha256(rest.encode()).digest(), admin, limits)


def _limits(words: Sequence[str], limits: Limits, place: str) -> Limits:
    """The limits, with those that the words give. Raises ConfigError."""
    given: dict[str, int | None] = {}
    for word in words:
        shown, _, value = word.partition("=")
        name = shown.replace("-", "_")
        # What follows a key might be a part of it, so that nothing of it is repeated.
        if name not in _LIMIT_NAMES or not (value == "none" or value.isdecimal()):
            known = ", ".join(f"{known.replace('_', '-')}=NUMBER" for known in _LIMIT_NAMES)
            raise ConfigError(
                f"{place}: after the key there may be limits ({known}, or =none), but what follows "
                f"is none of these; a key has no spaces"
            )
        given[name] = None if value == "none" else int(value)
    try:
        return replace(limits, **given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _lines(path: Path, *, admin: bool) -> Iterator[tuple[str, str, bool]]:
    try:
        text = path.read_text("utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key file {path} cannot be read: {error}") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"others than its owner can write to the key file {path}, and so let themselves in: "
            f"run chmod 600 {path}"
        )
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if content and not content.startswith("#"):
            count += 1
            yield f"{path}, line {number}", content, admin
    if not count:
        raise ConfigError(f"the key file {path} has no keys: write one a line, as NAME:KEY")


def _variable(
    environment: Mapping[str, str], name: str, *, admin: bool
) -> Iterator[tuple[str, str, bool]]:
    for text in environment.get(name, "").split(","):
        if text.strip():
            yield name, text.strip(), admin
