"""Values that a request brings, checked and made plain.

Whatever passes here can cross to the engine's process and be given to kernels: whole numbers are
`int` (no bool, no float), within bounds that kernels hold; text can be written as UTF-8. Anything
else is a RequestError that names the field.
"""

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from reprlib import Repr
from typing import SupportsFloat, TypeVar

from loire.base.errors import RequestError

SHOWN_CHARS = 60
_FEW = Repr()
_FEW.maxlevel = 2
MAX_INT = 2**31 - 1
"""Bound of counts: what kernels hold in 32 bits."""

T = TypeVar("T")


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number from low to high."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise _wrong(name, "a whole number", value) from None
    if not low <= number <= high:
        raise _outside(name, number, low, high)
    return number


def number(name: str, value: object, low: float, high: float) -> float:
    """A number from low to high, as a float. NaN is none."""
    if isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat):
        raise _wrong(name, "a number", value)
    try:
        real = float(value)
    except OverflowError:
        raise _outside(name, value, low, high) from None
    except (TypeError, ValueError):
        raise _wrong(name, "a number", value) from None
    if not low <= real <= high:
        raise _outside(name, value, low, high)
    return real


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def text(name: str, value: object) -> str:
    """Text of whole characters: half a surrogate pair is none, and tokenizers take none."""
    if not isinstance(value, str):
        raise _wrong(name, "text", value)
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} holds half of a surrogate pair (character {error.start}), which is no text",
            param=name,
        ) from None
    return value


def texts(name: str, values: object) -> tuple[str, ...]:
    """Several texts, as a tuple."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise _wrong(name, "a list of texts", values)
    return tuple(text(f"item {index} of {name}", item) for index, item in enumerate(values))


def one_of(name: str, value: T, choices: Collection[T]) -> T:
    """One of the choices."""
    if value not in choices:
        raise _wrong(name, " or ".join(map(repr, choices)), value)
    return value


def token_ids(name: str, values: object) -> tuple[int, ...]:
    """Token ids as plain integers. Whether there are such tokens only a model's builder knows."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise _wrong(name, "a list of token ids", values)
    ids = tuple(values)
    if set(map(type, ids)) <= {int}:
        return ids
    return tuple(whole(name, token_id, 0, MAX_INT) for token_id in ids)


@contextmanager
def under(param: str, prefix: str = "") -> Iterator[None]:
    """Errors about parts of a field name the field; prefix: put before their messages."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{prefix}{error}", param=param) from error


def shown(value: object) -> str:
    """A value as an error message shows it, however large it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        value = value[: SHOWN_CHARS + 1]  # before it is written out
    if isinstance(value, list | tuple | dict):
        written = _FEW.repr(value).encode("ascii", "backslashreplace").decode()
    else:
        written = ascii(value)
    return written if len(written) <= SHOWN_CHARS else f"{written[:SHOWN_CHARS]}..."


def _wrong(name: str, what: str, value: object) -> RequestError:
    kind = type(value).__name__
    return RequestError(f"{name} must be {what}, but is {shown(value)} ({kind})", param=name)


def _outside(name: str, value: object, low: float, high: float) -> RequestError:
    return RequestError(
        f"{name} must be between {low} and {high}, but is {shown(value)}", param=name
    )
