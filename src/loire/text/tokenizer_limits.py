"""What a tokenizer of a file may be: code of another language runs it, and nobody can stop that.

So its parts are bounded before it sees a text: how many there are, how long their patterns are, and
how much they can lengthen a text. All real ones stay far below.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from loire.base.errors import CheckpointError, LoireError

MAX_PARTS = 64
MAX_PATTERN_CHARACTERS = 8192
MAX_ADDED_CHARACTERS = 1000
"""Of one added token. What a text ends with is compared with their beginnings."""
MAX_GROWTH = 64
"""How many times as long a text may become before it is cut into tokens."""


@contextmanager
def errors_of_the_library(
    what: str, kind: Callable[[str], LoireError] = CheckpointError
) -> Iterator[None]:
    """Turn what the tokenizers library raises into an error of a kind that begins with what.

    It raises plain Exceptions, and where its code panics, an error that is none.
    """
    try:
        yield
    except (LoireError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{what}: {str(error)[:200]}") from error


def check_bounds(rust: RustTokenizer, source: str) -> None:
    """Raise CheckpointError if a tokenizer could take a text's time or memory without bound."""
    parts = [*_parts(rust.normalizer), *_parts(rust.pre_tokenizer)]
    if len(parts) > MAX_PARTS:
        raise CheckpointError(
            f"{source} has {len(parts)} steps before its tokens, more than {MAX_PARTS}"
        )
    growth = 1.0
    for part in parts:
        pattern = part.get("pattern")
        texts = pattern.values() if isinstance(pattern, Mapping) else ()
        written = (*texts, part.get("content"), part.get("prepend"))
        longest = max((len(text) for text in written if isinstance(text, str)), default=0)
        if longest > MAX_PATTERN_CHARACTERS:
            raise CheckpointError(
                f"{source} has a pattern of {longest} characters, more than "
                f"{MAX_PATTERN_CHARACTERS}"
            )
        growth *= _growth(part)
    if growth > MAX_GROWTH:
        raise CheckpointError(
            f"{source} can make a text {growth:g} times as long, more than {MAX_GROWTH}"
        )


def check_added_tokens(texts: Iterable[str]) -> None:
    """Raise CheckpointError if one of them is longer than any real one."""
    longest = max(map(len, texts), default=0)
    if longest > MAX_ADDED_CHARACTERS:
        raise CheckpointError(
            f"the tokenizer has an added token of {longest} characters, more than "
            f"{MAX_ADDED_CHARACTERS}"
        )


def _growth(part: Mapping[str, Any]) -> float:
    """How many characters may take the place of one."""
    if part.get("type") != "Replace" or not isinstance(part.get("content"), str):
        return 1.0
    pattern = part.get("pattern")
    replaced = pattern.get("String") if isinstance(pattern, Mapping) else None
    # A regular expression may match nothing, before every character.
    before = len(replaced) if isinstance(replaced, str) else 1
    after = len(part["content"]) + (0 if isinstance(replaced, str) else 1)
    return max(after / max(before, 1), 1.0)


def _parts(component: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, whatever they are wrapped in."""
    if component is None:
        return
    waiting = [json.loads(component.__getstate__())]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping):
            continue
        inner = [part.get(key) for key in ("normalizers", "pretokenizers")]
        nested = [item for items in inner if isinstance(items, list) for item in items]
        waiting += nested
        if not nested:
            yield part
