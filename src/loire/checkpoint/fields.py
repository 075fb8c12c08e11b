"""Reading fields of untrusted JSON or metadata: the right type, in a sane range, or an error."""

from collections.abc import Mapping
from typing import Any

from loire.base.errors import CheckpointError

_MISSING: Any = object()
MAX_POSITIONS = 2**24
"""Longest window that a model may claim, in tokens."""


def _is_number(value: object) -> bool:
    """Not a bool, and not an integer that no float can hold."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    )


class Fields:
    """A mapping with checked getters; errors name the file and the key."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def integer(self, key: str, default: Any = _MISSING, *, low: int = 1, high: int = 2**31) -> int:
        """A whole number within low..high."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, value, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: Any = _MISSING, *, low: float, high: float) -> float:
        """A number within low..high."""
        value = self._get(key, default)
        if not _is_number(value):
            raise self.wrong(key, value, "a number")
        if not low <= value <= high:
            raise self.wrong(key, value, f"a number from {low} to {high}")
        return float(value)

    def optional_number(self, key: str, *, low: float, high: float) -> float | None:
        """A number, or None where the key is missing or null."""
        return None if self.values.get(key) is None else self.number(key, low=low, high=high)

    def optional_integer(self, key: str, *, low: int = 1, high: int = 2**31) -> int | None:
        """A whole number, or None where the key is missing or null."""
        return None if self.values.get(key) is None else self.integer(key, low=low, high=high)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; null counts as the default."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: Any = _MISSING) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers."""
        value = self._get(key, _MISSING)
        if not isinstance(value, list) or not all(map(_is_number, value)):
            raise self.wrong(key, value, "a list of numbers")
        return tuple(float(item) for item in value)

    def section(self, key: str) -> "Fields":
        """A nested mapping."""
        value = self._get(key, _MISSING)
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return Fields(value, f"{self.source}, {key}")

    def wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        """The error for a value that is not what it should be."""
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return CheckpointError(f"{self.source}: {key} should be {expected}, but is {shown}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is _MISSING:
            raise CheckpointError(f"{self.source}: {key} is missing")
        return value
