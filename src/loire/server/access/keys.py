"""API keys: who may ask, and as which tenant. Only their SHA-256 hashes are kept.

A key is written as KEY, NAME:KEY or NAME:sha256:HEX. Limits of its own may follow it:
requests-per-minute=60 tokens-per-minute=100000 concurrency=8 (or =none for no limit), and the
adapters that it may use: adapters=french,sql (all of them where nothing is said). Its name is its
tenant's name: it stands in logs and metrics, the key itself never does. Plain SHA-256 suits
keys that nobody can guess, such as those of `openssl rand -hex 32`; it would not suit passwords
that people think up.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from loire.base.errors import ConfigError
from loire.server.access.rates import NO_LIMITS, Limits

SHORTEST_KEY = 16
"""Characters; a shorter key could be found by trying."""
MOST_DIGITS = 20
"""Of a limit that are read: it is too large then. Python reads no more than 4,300."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-9;-~]{1,512}")
"""Printable ASCII without space and colon: what a header can carry."""
_LIMIT_NAMES = tuple(field.name for field in fields(Limits))
_ADAPTERS = "adapters="
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that was given out. admin: it also opens what shows other tenants' requests. adapters:
    names of those that it may use; None for all."""

    name: str
    digest: bytes
    admin: bool = False
    limits: Limits = NO_LIMITS
    adapters: frozenset[str] | None = None


class KeyRing:
    """All keys of a server; made without any, everybody may ask.

    Raises ConfigError if two have the same name, or are the same.
    """

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self.keys: tuple[ApiKey, ...] = ()
        self.replace(keys)
        self._closed = bool(self.keys)

    def replace(self, keys: Sequence[ApiKey]) -> None:
        """From now on these are the keys; any thread may say so. Raises as the constructor does,
        and then changes nothing.

        A server that has lost its last key lets nobody in; one that began without any stays open.
        """
        names: set[str] = set()
        digests: dict[bytes, str] = {}
        for key in keys:
            if key.name in names:
                raise ConfigError(f"two keys have the name {key.name!r}: each needs its own")
            if key.digest in digests:
                raise ConfigError(f"{digests[key.digest]!r} and {key.name!r} have the same key")
            names.add(key.name)
            digests[key.digest] = key.name
        self.keys = tuple(keys)

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return self._closed

    def adapters_of(self, tenant: str) -> frozenset[str] | None:
        """Those that a tenant may use, None for all; none where its key was revoked."""
        if not self:
            return None
        return next((key.adapters for key in self.keys if key.name == tenant), frozenset())

    def find(self, presented: bytes) -> ApiKey | None:
        """The key that was presented. Takes as long for a wrong key as for any right one."""
        digest = hashlib.sha256(presented).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def parse_key(
    text: str,
    *,
    place: str,
    admin: bool = False,
    limits: Limits = NO_LIMITS,
) -> ApiKey:
    """A key from KEY, NAME:KEY or NAME:sha256:HEX, with limits after it.

    place: for error messages, which never repeat the key. limits: what it has where the text
    says nothing. Raises ConfigError.

    A key without a name gets one from its hash, so that it stays the same tenant whatever keys are
    beside it.
    """
    words = text.split() or [""]
    allowed = [word for word in words[1:] if word.startswith(_ADAPTERS)]
    limits = _limits([word for word in words[1:] if word not in allowed], limits, place)
    adapters = _adapters(allowed, place)
    name, colon, rest = words[0].partition(":")
    if not colon:
        digest = hashlib.sha256(words[0].encode()).hexdigest()
        name, rest = f"key-{digest[:8]}", words[0]
    check_name(name, place=place)
    kind, hashed, digest = rest.partition(":")
    if hashed:
        if kind != "sha256" or not _DIGEST.fullmatch(digest):
            raise ConfigError(
                f"{place}: after {name!r} there must be a key without colons, or sha256: and 64 "
                f"hexadecimal digits"
            )
        return ApiKey(name, bytes.fromhex(digest), admin, limits, adapters)
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
    return ApiKey(name, hashlib.sha256(rest.encode()).digest(), admin, limits, adapters)


def check_name(name: str, *, place: str) -> None:
    """Raises ConfigError if a key cannot have that name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{place}: the name before the colon must have 1 to 64 letters, digits, '.', '_' or "
            f"'-', and begin with a letter or digit"
        )
    if name.lower() == "sha256":
        raise ConfigError(
            f"{place}: a hash needs the name of its key before it: NAME:sha256:HEX (without one it "
            f"would be taken for a key itself)"
        )


def adapter_words(adapters: frozenset[str] | None) -> list[str]:
    """What stands after a key that may use these."""
    return [] if adapters is None else [_ADAPTERS + ",".join(sorted(adapters))]


def _adapters(words: Sequence[str], place: str) -> frozenset[str] | None:
    if not words:
        return None
    if len(words) > 1:
        raise ConfigError(f"{place}: {_ADAPTERS} is given twice: write its names with commas")
    return frozenset(filter(None, words[0].removeprefix(_ADAPTERS).split(",")))


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
                f"{place}: after the key there may be limits ({known}, or =none) and adapters=NAME,"
                f"NAME, but what follows is none of these; a key has no spaces"
            )
        given[name] = None if value == "none" else int(value[:MOST_DIGITS])
    try:
        return replace(limits, **given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
