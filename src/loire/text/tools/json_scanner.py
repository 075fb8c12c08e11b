"""JSON, checked character by character while it comes (RFC 8259, without leniency)."""

from typing import Literal

_WHITESPACE = " \t\n\r"
_DIGITS = frozenset("0123456789")
_HEX = frozenset("0123456789abcdefABCDEF")
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}
# A number's states: what may follow, and where that leads. "int" and the like may end the number.
_NUMBER = {
    "minus": {"0": "zero", **dict.fromkeys("123456789", "int")},
    "zero": {".": "point", "e": "e", "E": "e"},
    "int": {**dict.fromkeys("0123456789", "int"), ".": "point", "e": "e", "E": "e"},
    "point": dict.fromkeys("0123456789", "fraction"),
    "fraction": {**dict.fromkeys("0123456789", "fraction"), "e": "e", "E": "e"},
    "e": {**dict.fromkeys("0123456789", "exponent"), "+": "sign", "-": "sign"},
    "sign": dict.fromkeys("0123456789", "exponent"),
    "exponent": dict.fromkeys("0123456789", "exponent"),
}
_MAY_END = frozenset(("zero", "int", "fraction", "exponent"))

State = Literal[
    "value", "first_item", "first_key", "key", "colon", "after", "string", "escape", "unicode",
    "number", "literal", "done",
]  # fmt: skip


class JsonScanner:
    """Follows one JSON value that is an object or an array.

    state: what is expected next; depth: how many objects and arrays are open.
    """

    def __init__(self) -> None:
        self.state: State = "value"
        self._open: list[str] = []
        self._in_key = False
        self._number = ""
        self._rest = ""
        """What is left of a literal; of an escape, one character per digit."""

    @property
    def depth(self) -> int:
        """How many objects and arrays are open."""
        return len(self._open)

    @property
    def in_key(self) -> bool:
        """Whether the string that is being read is a key."""
        return self._in_key

    def push(self, character: str) -> bool:
        """Take in one character; False if it cannot stand there. Nothing may be pushed then."""
        match self.state:
            case "string":
                return self._string(character)
            case "escape":
                self.state, self._rest = ("unicode", "xxxx") if character == "u" else ("string", "")
                return character in '"\\/bfnrtu'
            case "unicode":
                self._rest = self._rest[1:]
                self.state = "unicode" if self._rest else "string"
                return character in _HEX
            case "literal":
                expected, self._rest = self._rest[0], self._rest[1:]
                if not self._rest:
                    self.state = "after"
                return character == expected
            case "number":
                following = _NUMBER[self._number].get(character)
                if following is not None:
                    self._number = following
                    return True
                if self._number not in _MAY_END:
                    return False
                self.state = "after"
        if character in _WHITESPACE:
            return self.state != "done"
        return self._structure(character)

    def _string(self, character: str) -> bool:
        if character == '"':
            self.state = "colon" if self._in_key else "after"
            self._in_key = False
        elif character == "\\":
            self.state = "escape"
        return character >= " "

    def _structure(self, character: str) -> bool:
        """A character outside strings, numbers and literals that is no whitespace."""
        if character in "]}":
            return self._close(character)
        match self.state:
            case "first_key" | "key":
                self.state, self._in_key = "string", True
                return character == '"'
            case "colon":
                self.state = "value"
                return character == ":"
            case "after":
                self.state = "key" if self._open[-1] == "}" else "value"
                return character == ","
            case "value" | "first_item":
                return self._value(character)
        return False

    def _value(self, character: str) -> bool:
        if character in "{[":
            self._open.append("}" if character == "{" else "]")
            self.state = "first_key" if character == "{" else "first_item"
        elif not self._open:
            return False
        elif character == '"':
            self.state = "string"
        elif character == "-" or character in _DIGITS:
            self.state = "number"
            self._number = {"-": "minus", "0": "zero"}.get(character, "int")
        elif character in _LITERALS:
            self.state, self._rest = "literal", _LITERALS[character]
        else:
            return False
        return True

    def _close(self, character: str) -> bool:
        empty = "first_key" if character == "}" else "first_item"
        if self.state not in ("after", empty) or not self._open or self._open[-1] != character:
            return False
        self._open.pop()
        self.state = "after" if self._open else "done"
        return True
