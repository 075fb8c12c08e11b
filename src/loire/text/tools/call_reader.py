"""Reads one call, an object of a name and arguments, while its text comes."""

import json
from collections.abc import Iterable, Set

from loire.text.tools.json_scanner import JsonScanner

_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "type", "id", *_ARGUMENTS)


class CallReader:
    """Follows a call's text from its first brace on.

    name: the tool's, once it is known; given, the text is that of the arguments alone.
    complete: whether the call has come to its end.
    The order of the keys is free. What is no call shows at the first character that cannot stand
    there: another key, the name of no tool, a mistake in the JSON.
    """

    def __init__(self, names: Set[str], name: str | None = None) -> None:
        self.name = name
        self.complete = False
        self._names = names
        self._arguments_only = name is not None
        self._scanner = JsonScanner()
        self._key = ""
        self._seen: set[str] = set()
        self._text = ""
        """The key or short value that is being read, of arguments in a string its first character;
        the rest is in _long."""
        self._long: list[str] = []
        self._in_arguments = False
        self._arguments: list[str] = []
        """Of the arguments, what has not been taken."""

    def push(self, character: str) -> bool:
        """Take in one character; False if this is no call (then nothing may be pushed)."""
        scanner = self._scanner
        state, depth = scanner.state, scanner.depth
        if not scanner.push(character):
            return False
        if self._arguments_only:
            self._arguments.append(character)
            self.complete = scanner.state == "done"
            return True
        if self._in_arguments:
            self._arguments.append(character)
            self._in_arguments = scanner.depth > 1
            return True
        if depth == 0:
            return character == "{"
        if depth == 1 and not self._member(character, state):
            return False
        self.complete = scanner.state == "done"
        if self.complete and not self._seen.intersection(_ARGUMENTS):
            self._arguments.append("{}")
        return not self.complete or self.name is not None

    def take_arguments(self) -> str:
        """The text of the arguments that has come since the last call."""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    @property
    def has_arguments(self) -> bool:
        """Whether any of the arguments' text has come that was not taken."""
        return bool(self._arguments)

    def _member(self, character: str, before: str) -> bool:
        """A character directly inside the call's object: of a key, or of a value."""
        scanner = self._scanner
        if before in ("first_key", "key") and scanner.in_key:
            self._text = character
        elif before == "value" and scanner.state != "value":
            return self._begin_value(character)
        elif before in ("string", "escape", "unicode", "literal"):
            in_key = scanner.in_key or scanner.state == "colon"
            if self._key in _ARGUMENTS and not in_key:
                self._long.append(character)
            else:
                self._text += character
            if before == "string" and not self._may_become(scanner.in_key):
                return False
            if scanner.state == "colon":
                return self._end_key()
            if scanner.state == "after":
                return self._end_value()
        return True

    def _may_become(self, is_key: bool) -> bool:
        """Whether the text so far begins a key or name that is allowed: a refusal comes early."""
        if is_key or self._scanner.state == "colon":
            allowed: Iterable[str] = _KEYS
        elif self._key == "name":
            allowed = self._names
        else:
            return True
        return any(f'"{word}"'.startswith(self._text) for word in allowed)

    def _end_key(self) -> bool:
        self._key = self._text[1:-1]
        group = "arguments" if self._key in _ARGUMENTS else self._key
        first = group not in self._seen
        self._seen.add(group)
        return first

    def _begin_value(self, character: str) -> bool:
        self._text = character
        self._long.clear()
        if self._key not in _ARGUMENTS:
            return character == '"'
        if character == "{":
            self._in_arguments = True
            self._arguments.append(character)
        return character in '{"n'

    def _end_value(self) -> bool:
        value = json.loads(self._text + "".join(self._long))
        if self._key == "name":
            self.name = value
            return True
        if self._key == "type":
            return bool(value == "function")
        if self._key in _ARGUMENTS:
            # null for no arguments; some models write the object as a string.
            text = "{}" if value is None else value
            self._arguments.append(text)
            return _is_object(text)
        return True


def _is_object(text: str) -> bool:
    if any("\ud800" <= character <= "\udfff" for character in text):
        return False
    scanner = JsonScanner()
    return text.startswith("{") and all(map(scanner.push, text)) and scanner.state == "done"
