"""Facts in two columns."""

from collections.abc import Iterator, Mapping


def aligned(entries: Mapping[str, object]) -> Iterator[str]:
    """Names and values, the second column where the longest name ends."""
    width = max(map(len, entries), default=0)
    for name, value in entries.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        yield f"  {name:<{width}}  {shown}"
