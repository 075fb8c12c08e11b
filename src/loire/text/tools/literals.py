"""Reads values as Python and its like write them: other quotes, other words for true and null."""

import json
import re
from typing import Any

MAX_DEPTH = 64
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_SPACE = re.compile(r"\s*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
_HEX = {"u": 4, "x": 2, "U": 8}


class LiteralReader:
    """Reads a text from its beginning on; ValueError where something else stands.

    quotes: what begins and ends a text. bare_keys: keys of objects may be names without quotes.
    """

    def __init__(
        self, text: str, quotes: tuple[str, ...] = ('"', "'"), *, bare_keys: bool = False
    ) -> None:
        self.text = text
        self.place = 0
        self._quotes = quotes
        self._bare_keys = bare_keys

    def skip(self) -> None:
        """Pass whitespace."""
        found = _SPACE.match(self.text, self.place)
        assert found is not None
        self.place = found.end()

    def take(self, text: str) -> bool:
        """Pass a text, if it comes next behind whitespace."""
        self.skip()
        if not self.text.startswith(text, self.place):
            return False
        self.place += len(text)
        return True

    def expect(self, text: str) -> None:
        """Pass a text that must come next."""
        if not self.take(text):
            raise ValueError(f"{text!r} is missing at {self.place}")

    def name(self) -> str:
        """A name that must come next."""
        self.skip()
        found = _NAME.match(self.text, self.place)
        if found is None:
            raise ValueError(f"a name is missing at {self.place}")
        self.place = found.end()
        return found[0]

    @property
    def at_end(self) -> bool:
        """Whether nothing but whitespace is left."""
        self.skip()
        return self.place == len(self.text)

    def value(self, depth: int = 0) -> Any:
        """A value that must come next."""
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        self.skip()
        for quote in self._quotes:
            if self.take(quote):
                return self._string(quote)
        if self.take("["):
            return self._items("]", depth)
        if self.take("("):
            return self._items(")", depth)
        if self.take("{"):
            return self._object(depth)
        number = _NUMBER.match(self.text, self.place)
        if number is not None:
            self.place = number.end()
            return json.loads(number[0])
        word = self.name()
        if word not in _WORDS:
            raise ValueError(f"{word!r} is no value")
        return _WORDS[word]

    def _items(self, closing: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self.take(closing):
            if items:
                self.expect(",")
                if self.take(closing):
                    break
            items.append(self.value(depth + 1))
        return items

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self.take("}"):
            if found:
                self.expect(",")
            key = self._key(depth)
            self.expect(":")
            found[key] = self.value(depth + 1)
        return found

    def _key(self, depth: int) -> str:
        if self._bare_keys and not any(self.text.startswith(q, self.place) for q in self._quotes):
            return self.name()
        key = self.value(depth + 1)
        if not isinstance(key, str):
            raise ValueError("a key is no text")
        return key

    def _string(self, quote: str) -> str:
        """A text whose opening quote was passed."""
        if len(quote) > 1:  # a token of its own: nothing is escaped
            end = self.text.find(quote, self.place)
            if end < 0:
                raise ValueError("a text has no end")
            found, self.place = self.text[self.place : end], end + len(quote)
            return found
        pieces: list[str] = []
        while True:
            if self.place >= len(self.text):
                raise ValueError("a text has no end")
            char = self.text[self.place]
            self.place += 1
            if char == quote:
                return "".join(pieces)
            pieces.append(self._escaped() if char == "\\" else char)

    def _escaped(self) -> str:
        char = self.text[self.place : self.place + 1]
        self.place += 1
        if char in _HEX:
            digits = self.text[self.place : self.place + _HEX[char]]
            self.place += _HEX[char]
            code = int(digits, 16)
            if char == "u" and 0xD800 <= code < 0xDC00 and self.text.startswith("\\u", self.place):
                low = int(self.text[self.place + 2 : self.place + 6], 16)
                self.place += 6
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise ValueError("an escape is no character")
            return chr(code)
        return _ESCAPES.get(char, char)
