"""Control tokens in a user's text are text: nobody forges a turn by writing its marks.

Before a template renders a conversation, each control token in it is put between two marks, which
no text holds afterwards; what stands between them is encoded as if there were no such token.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from loire.base.errors import RequestError

_START, _END = "\ufdd1", "\ufdd2"
"""Noncharacters: Unicode keeps them for use within a program."""
_MARKED = re.compile(f"{_START}([^{_START}{_END}]*){_END}|[{_START}{_END}]")
_SLICE = 2**18
"""Characters that are searched at a time: meanwhile no other thread has its turn."""
_PLAIN_KEYS = frozenset(("role", "type"))
"""What templates compare, and the API checks."""


class ControlTokens:
    """Hides the control tokens in messages. tokens: their texts."""

    def __init__(self, tokens: Iterable[str]) -> None:
        longest_first = sorted(filter(str.strip, tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._sorted = sorted(longest_first)
        self._longest = len(longest_first[0]) - 1 if longest_first else 0

    def hide(self, value: Any) -> Any:
        """The same value, with control tokens marked in all of its texts but keys and roles."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, Mapping):
            return {
                key: inner if key in _PLAIN_KEYS else self.hide(inner)
                for key, inner in value.items()
            }
        if isinstance(value, Sequence):
            return [self.hide(inner) for inner in value]
        return value

    def _hide(self, text: str) -> str:
        text = self._mark(without_marks(text))
        # What the next text goes on with could make a token of the beginning of one.
        lengths = range(1, min(self._longest, len(text)) + 1)
        return text + _END if any(self._begins_one(text[-n:]) for n in lengths) else text

    def _mark(self, text: str) -> str:
        """A text with its control tokens between marks."""
        parts: list[str] = []
        place = 0
        for end in range(_SLICE, len(text) + _SLICE, _SLICE):
            # What begins in the slice may end behind it.
            for token in self._pattern.finditer(text, place, end + self._longest):
                if token.start() >= end:
                    break
                parts += text[place : token.start()], _START, token[0], _END
                place = token.end()
            parts.append(text[place:end])
            place = max(place, end)
        return "".join(parts)

    def _begins_one(self, text: str) -> bool:
        """Whether a token begins with a text and goes on: then the next one in order does."""
        place = bisect_right(self._sorted, text)
        return place < len(self._sorted) and self._sorted[place].startswith(text)


def without_marks(text: str) -> str:
    """The text as it was."""
    return text.replace(_START, "").replace(_END, "")


def has_marks(text: str) -> bool:
    """Whether anything is marked in a text."""
    return _START in text or _END in text


def encode_marked(rust: RustTokenizer, text: str) -> list[int]:
    """Token ids of a text with marks. Raises RequestError where a control token cannot be text."""
    ids: list[int] = []
    # Text, marked token, text, ...; None instead of the token for a mark that lost its partner.
    for place, piece in enumerate(_MARKED.split(text)):
        if not piece:
            continue
        added = _encode(rust, piece, as_text=place % 2 == 1, first=not ids)
        if place % 2 and rust.token_to_id(piece) in added:
            raise RequestError(
                f"messages hold the control token {piece!r}, which this model's tokenizer cannot "
                f"write as text",
                param="messages",
            )
        ids += added
    return ids


def _encode(rust: RustTokenizer, piece: str, *, as_text: bool, first: bool) -> list[int]:
    if not first:
        # Behind a line break, since some tokenizers begin a text with a space of their own.
        before = _ids(rust, "\n", as_text)
        ids = _ids(rust, "\n" + piece, as_text)
        if ids[: len(before)] == before:
            return ids[len(before) :]
    return _ids(rust, piece, as_text)


def _ids(rust: RustTokenizer, text: str, as_text: bool) -> list[int]:
    """as_text: without the added tokens, which the library always looks for first."""
    if not as_text:
        [encoding] = rust.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids
    if rust.normalizer is not None:
        text = rust.normalizer.normalize_str(text)
    words = [text]
    if rust.pre_tokenizer is not None:
        words = [word for word, _ in rust.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in rust.model.tokenize(word)]
