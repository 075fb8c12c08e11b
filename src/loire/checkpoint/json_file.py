"""JSON files of a model directory: of sane size, one object, no key twice."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loire.base.errors import CheckpointError

MAX_JSON_BYTES = 2**24


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a file. Raises CheckpointError if it is too large, damaged or no object."""
    return parse_object(read_text(path), str(path))


def read_text(path: Path) -> str:
    """A UTF-8 file of sane size. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} has {size} bytes; no file of its kind has more than {MAX_JSON_BYTES}"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def parse_object(text: str | bytes, source: str) -> Mapping[str, Any]:
    """A JSON object; source names it in errors. Raises CheckpointError."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} should hold a JSON object, not {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers of a file must not see different values.
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {twice[:80]!r} occurs twice")
    return found
