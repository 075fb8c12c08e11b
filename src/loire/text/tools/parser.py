"""Finds the calls in an answer while its text comes in, in pieces of any size.

The text is followed character by character, so what is found cannot depend on the pieces. What is
no valid call, and the call of a tool that was not offered, is content; nothing is lost but the
whitespace around calls. Each character is read once or twice: a failed call is not searched again.
"""

import re
import secrets
import string
from collections.abc import Callable, Set
from enum import Enum, auto

from loire.text.tools.call_reader import CallReader
from loire.text.tools.events import (
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ToolEvent,
)
from loire.text.tools.formats import ToolFormat

MAX_HEADER = 256
"""Characters between an opening and the arguments of a named call."""
_ID_ALPHABET = string.ascii_letters + string.digits
_HEADER = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?", re.ASCII)
_HEADER_CHARACTERS = frozenset(_ID_ALPHABET + "_-.[] \t\r\n")


class _State(Enum):
    TEXT = auto()
    OPENED = auto()
    """After an opening: an object, a list of them, or a name must follow."""
    HEADER = auto()
    """In the name of a named call."""
    CALL = auto()
    BETWEEN = auto()
    """After a call: another one, an end, or text."""


class ToolParser:
    """Turns the text of one answer into content and calls.

    names: the tools that may be called; max_calls: calls after so many are content;
    new_id: makes the id of a call.
    """

    def __init__(
        self,
        tool_format: ToolFormat,
        names: Set[str],
        *,
        max_calls: int | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._format = tool_format
        self._names = names
        self._max_calls = max_calls
        self._new_id = new_id or (lambda: new_call_id(tool_format.id_length))
        self._plain = re.compile(rf"[^\s{{{re.escape(tool_format.opening[0])}]+")
        self._state = _State.TEXT
        self._events: list[ToolEvent] = []
        self._content: list[str] = []
        self._begun = False
        """Whether any content was told."""
        self._raw: list[str] = []
        """What becomes content if it turns out to belong to no call."""
        self._mark = ""
        """The end of the text, as far as it is the beginning of a marker; not yet in _raw."""
        self._in_list = False
        self._separated = False
        self._header = ""
        self._reader: CallReader | None = None
        self._announced = False
        self._num_started = 0
        self._num_complete = 0

    @property
    def num_complete(self) -> int:
        """Calls that came to their end."""
        return self._num_complete

    @property
    def in_call(self) -> bool:
        """Whether a call was told that has not come to its end."""
        return self._state is _State.CALL and self._announced

    def push(self, text: str) -> list[ToolEvent]:
        """Take in text: what has become certain."""
        position = 0
        while position < len(text):
            if self._state is _State.TEXT and not self._raw and not self._mark:
                plain = self._plain.match(text, position)
                if plain is not None:
                    self._say(plain.group())
                    position = plain.end()
                    continue
            self._step(text[position])
            position += 1
        return self._take()

    def finish(self, *, truncated: bool) -> list[ToolEvent]:
        """What is certain now that the text has ended.

        truncated: because of its length. A call that was announced is then left as it is, without
        an end; otherwise a call without an end is none.
        """
        if self.in_call and truncated:
            return self._take()
        if self.in_call:
            self._tell_arguments()
            self._tell(CallBroken(self._num_started - 1))
        rest = "".join(self._raw) + self._mark
        if self._state is not _State.BETWEEN or rest.strip():
            self._say(rest)
        self._raw.clear()
        self._mark = ""
        self._state = _State.TEXT
        return self._take()

    def _step(self, character: str) -> None:
        match self._state:
            case _State.TEXT:
                self._in_text(character)
            case _State.OPENED:
                self._in_opened(character)
            case _State.HEADER:
                self._in_header(character)
            case _State.CALL:
                self._in_call(character)
            case _State.BETWEEN:
                self._in_between(character)

    def _in_text(self, character: str) -> None:
        mark = self._mark + character
        if self._may_open and self._format.opening.startswith(mark):
            self._follow_opening(mark)
        elif self._mark:
            self._release_mark(character)
        elif character.isspace():
            self._raw.append(character)
        elif character == "{" and self._format.bare and not self._begun and self._may_open:
            self._begin_call(character)
        else:
            self._fail(character, told=True)

    def _in_opened(self, character: str) -> None:
        if character.isspace():
            self._raw.append(character)
        elif character == "{":
            self._begin_call(character)
        elif character == "[" and not self._in_list:
            self._in_list = True
            self._raw.append(character)
        elif self._format.named and not self._in_list and character in _HEADER_CHARACTERS:
            self._state = _State.HEADER
            self._header = character
            self._raw.append(character)
        else:
            self._fail(character)

    def _in_header(self, character: str) -> None:
        if character == "{":
            header = _HEADER.fullmatch(self._header)
            if header is not None and header[1] in self._names:
                self._begin_call(character, header[1])
                return
        elif character in _HEADER_CHARACTERS and len(self._header) < MAX_HEADER:
            self._header += character
            self._raw.append(character)
            return
        self._fail(character)

    def _begin_call(self, character: str, name: str | None = None) -> None:
        self._reader = CallReader(self._names, name)
        self._state, self._announced, self._separated = _State.CALL, False, False
        self._in_call(character)

    def _in_call(self, character: str) -> None:
        reader = self._reader
        assert reader is not None, "a call is being read"
        if not reader.push(character):
            self._fail(character)
            return
        self._raw.append(character)
        if reader.name is not None and reader.has_arguments and not self._announced:
            self._announced = True
            self._tell(CallStarted(self._num_started, self._new_id(), reader.name))
            self._num_started += 1
        if reader.complete:
            self._tell_arguments()
            self._tell(CallEnded(self._num_started - 1))
            self._num_complete += 1
            self._begun = True
            self._raw.clear()
            self._state = _State.BETWEEN

    def _in_between(self, character: str) -> None:
        mark = self._mark + character
        closing, opening = self._format.closing, self._format.opening
        if closing.startswith(mark):
            self._mark = mark
            if mark == closing:
                self._consume()
        elif self._may_open and opening.startswith(mark):
            self._follow_opening(mark)
        elif self._mark:
            self._release_mark(character)
        elif character.isspace():
            self._raw.append(character)
        elif character == "]" and self._in_list and not self._separated:
            self._consume()
        elif not self._may_open:
            self._fail(character)
        elif character in self._format.separators and not self._separated:
            self._separated = True
            self._raw.append(character)
        elif character == "{" and (self._separated or self._format.bare):
            self._begin_call(character)
        else:
            self._fail(character)

    @property
    def _may_open(self) -> bool:
        return self._max_calls is None or self._num_complete < self._max_calls

    def _follow_opening(self, mark: str) -> None:
        """The text ends with the beginning of an opening, or with all of it."""
        self._mark = mark
        if mark == self._format.opening:
            self._raw.append(mark)
            self._mark = ""
            self._in_list = self._separated = False
            self._state = _State.OPENED

    def _release_mark(self, character: str) -> None:
        """What looked like a marker is none: its first character is text, the rest is seen anew."""
        mark, self._mark = self._mark, ""
        self._fail(mark[0], told=True)
        for following in mark[1:] + character:
            self._step(following)

    def _consume(self) -> None:
        """What ends a call belongs to it."""
        self._raw.clear()
        self._mark = ""
        self._in_list = False

    def _fail(self, character: str, *, told: bool = False) -> None:
        """What was held back is content. told: so is the character; else it is seen as text."""
        if self.in_call:
            self._tell_arguments()
            self._tell(CallBroken(self._num_started - 1))
        self._say("".join(self._raw))
        self._raw.clear()
        self._in_list = False
        self._state = _State.TEXT
        if told:
            self._say(character)
        else:
            self._step(character)

    def _say(self, text: str) -> None:
        if text:
            self._content.append(text)
            self._begun = True

    def _tell(self, event: ToolEvent) -> None:
        self._flush_content()
        self._events.append(event)

    def _tell_arguments(self) -> None:
        """What has come of an announced call's arguments: one event per piece of text."""
        if self.in_call and self._reader is not None and self._reader.has_arguments:
            self._tell(ArgumentsDelta(self._num_started - 1, self._reader.take_arguments()))

    def _flush_content(self) -> None:
        if self._content:
            self._events.append(ContentDelta("".join(self._content)))
            self._content.clear()

    def _take(self) -> list[ToolEvent]:
        self._tell_arguments()
        self._flush_content()
        events, self._events = self._events, []
        return events


def new_call_id(length: int | None = None) -> str:
    """An id that no other call has: of so many letters and digits, or in OpenAI's form."""
    if length is None:
        return f"call_{secrets.token_hex(12)}"
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(length))
