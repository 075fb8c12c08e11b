"""Numbers as people write them: "2GB", "512MiB", "8k", "13B"."""

import re

from loire.base.errors import ConfigError

_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_TOKENS = {"": 1, "k": 2**10, "m": 2**20}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parse_bytes(text: str) -> int:
    """Bytes: KB, MB, GB, TB are decimal, KiB, MiB, GiB, TiB binary. Raises ConfigError."""
    return _parse(text, _BYTES, "a size such as 2GB, 512MB or 4GiB")


def parse_tokens(text: str) -> int:
    """Tokens of a window: k and m are binary, as windows are (8k = 8192). Raises ConfigError."""
    return _parse(text, _TOKENS, "a number of tokens such as 4096 or 8k")


def parse_count(text: str) -> int:
    """A decimal count, such as parameters: 13B = 13,000,000,000. Raises ConfigError."""
    return _parse(text, _COUNTS, "a count such as 135M or 13B")


def _parse(text: str, units: dict[str, int], what: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match.group(2).lower() not in units:
        raise ConfigError(f"{text!r} is not {what}")
    return round(float(match.group(1)) * units[match.group(2).lower()])
