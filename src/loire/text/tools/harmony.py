"""gpt-oss: an answer is a series of messages, each in a channel, and calls are addressed messages.

    <|channel|>analysis<|message|>thoughts<|end|><|start|>assistant<|channel|>final<|message|>text
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{"key": 1}<|call|>

https://cookbook.openai.com/articles/openai-harmony
The tokens <|call|> and <|return|> end the answer. What is said in the commentary channel to nobody
in particular is for the user.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from loire.text.reasoning import ReasoningMarks
from loire.text.tools.blocks import Block, ReadCalls, Rules, Schemas
from loire.text.tools.call_reader import CallReader
from loire.text.tools.events import (
    AnswerEvent,
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ReasoningDelta,
)
from loire.text.tools.formats import ToolFormat

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", _START)
_TOKENS = (_START, _CHANNEL, _MESSAGE, "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")
MAX_HEADER = 256
"""Characters before a message's text."""

HARMONY_MARKS = ReasoningMarks(
    opening="<|channel|>analysis<|message|>",
    closing="<|end|><|start|>assistant",
    tokens=_TOKENS,
    answer="<|channel|>final<|message|>",
)
_ADDRESSEE = re.compile(r"to=([^\s<]+)")
_IN_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")

_Kind = Literal["thoughts", "content", "call"]


def _read(inner: str, schemas: Schemas) -> ReadCalls | None:
    raise AssertionError("messages are read by HarmonyParser")


def _write(name: str, schema: Mapping[str, Any], rules: Rules) -> str:
    head = rules.text(f"{_CHANNEL}commentary to=functions.{name} <|constrain|>json{_MESSAGE}")
    return f"{head} {rules.json(schema)}"


HARMONY = ToolFormat(
    name="harmony",
    opening=_CHANNEL,
    single=True,
    before="",
    between="",
    after="",
    block=Block(read=_read, write=_write, tokens=_TOKENS),
)


class HarmonyParser:
    """Reads one answer, in pieces of any size: as AnswerParser does, thoughts and calls at once.

    names: the tools that may be called. within: the prompt ends in the middle of such a message.
    Everything streams. A call that is none of the tools', or has no JSON object, is content to the
    letter; one that shows this after it was told is revoked.
    """

    def __init__(
        self,
        names: frozenset[str],
        *,
        new_id: Callable[[], str],
        max_calls: int | None = None,
        within: _Kind | None = None,
    ) -> None:
        self._names = names
        self._new_id = new_id
        self._max_calls = max_calls
        self._kind: _Kind | None = within
        """Of the message whose text is being read; None before its text."""
        self._begun = False
        """Whether the assistant's first header is complete, which begins without a mark."""
        self._held = ""
        self._call: CallReader | None = None
        self._raw: list[str] = []
        """Of the call that is being read, its header included."""
        self._announced = False
        self._number = -1
        """Of the latest call that was told: one that is revoked keeps its number."""
        self.num_calls = 0
        """Those that have come to their end."""

    @property
    def in_call(self) -> bool:
        """Whether a call was told that has not come to its end."""
        return self._announced

    def push(self, text: str) -> list[AnswerEvent]:
        """Take in text: what has become certain."""
        self._held += text
        events: list[AnswerEvent] = []
        while self._read_header(events) if self._kind is None else self._read_text(events):
            pass
        return _merged(events)

    def finish(self, *, truncated: bool) -> list[AnswerEvent]:
        """What is certain now that the text has ended.

        truncated: because of its length. A call that was told is then left as it is, without an
        end; otherwise a call without an end is none.
        """
        events: list[AnswerEvent] = []
        held, self._held = self._held, ""
        if self._kind is None:
            if held.strip() and not held.lstrip().startswith((_CHANNEL, _START, "to=")):
                events.append(ContentDelta(held))
        elif self._call is None or not truncated:
            self._say(events, held)
            self._end_message(events)  # the token that ends a call ends the answer
        return _merged(events)

    def _read_header(self, events: list[AnswerEvent]) -> bool:
        """Read up to a message's text; whether there is more to do."""
        held = self._held
        if not self._begun and not self._may_be_header(held):
            self._kind, self._begun = "content", True
            return bool(held)
        place = held.find(_MESSAGE)
        if place < 0:
            if len(held) > MAX_HEADER:
                self._kind, self._begun = "content", True
                return True
            return False
        header, self._held = held[:place], held[place + len(_MESSAGE) :]
        self._begun = True
        self._begin_message(events, header)
        return bool(self._held)

    @staticmethod
    def _may_be_header(held: str) -> bool:
        """Whether an answer that begins with this may begin with a header."""
        begun = held.lstrip()
        return any(
            begun.startswith(mark) or mark.startswith(begun) for mark in (_CHANNEL, "to=", _START)
        )

    def _begin_message(self, events: list[AnswerEvent], header: str) -> None:
        addressee = _ADDRESSEE.search(header)
        channel = _IN_CHANNEL.search(header)
        if addressee is None:
            is_thought = channel is not None and channel[1] == "analysis"
            self._kind = "thoughts" if is_thought else "content"
            return
        self._kind, self._raw = "call", [header, _MESSAGE]
        name = addressee[1].removeprefix("functions.")
        may = self._max_calls is None or self.num_calls < self._max_calls
        if may and name in self._names:
            self._call = CallReader(self._names, name)
        else:
            self._fail(events, "")

    def _read_text(self, events: list[AnswerEvent]) -> bool:
        """Read a message's text; whether it has come to its end and there is more to do."""
        places = [(self._held.find(mark), mark) for mark in _ENDS]
        found = min((place for place in places if place[0] >= 0), default=None)
        if found is None:
            certain = len(self._held) - _uncertain(self._held)
            self._say(events, self._held[:certain])
            self._held = self._held[certain:]
            return False
        place, mark = found
        text, self._held = self._held[:place], self._held[place + len(mark) :]
        self._say(events, text)
        self._end_message(events)
        return bool(self._held)

    def _say(self, events: list[AnswerEvent], text: str) -> None:
        if self._kind == "thoughts" and text:
            events.append(ReasoningDelta(text))
        elif self._kind == "content" and text:
            events.append(ContentDelta(text))
        elif self._kind == "call":
            self._read_call(events, text)

    def _read_call(self, events: list[AnswerEvent], text: str) -> None:
        """Follow a call's arguments; what comes after them, whitespace aside, is content."""
        call = self._call
        for place, character in enumerate(text):
            if call is not None and not self._announced:
                if character.isspace():
                    self._raw.append(character)
                    continue
                if character != "{":
                    return self._fail(events, text[place:])
                self._announce(events)
            if call is None:
                if rest := text[place:].lstrip():
                    self._kind = "content"
                    events.append(ContentDelta(rest))
                return None
            if not call.push(character):
                return self._fail(events, text[place:])
            self._raw.append(character)
            if call.complete:
                self._tell_arguments(events, call)
                self._end_call(events)
                call = None
        if call is not None:
            self._tell_arguments(events, call)
        return None

    def _tell_arguments(self, events: list[AnswerEvent], call: CallReader) -> None:
        """Those that came with a piece of text, together: each is an event of a stream."""
        if arguments := call.take_arguments():
            events.append(ArgumentsDelta(self._number, arguments))

    def _announce(self, events: list[AnswerEvent]) -> None:
        call = self._call
        assert call is not None, "a call is being read"
        assert call.name is not None, "its header has the name"
        self._number += 1
        self._announced = True
        events.append(CallStarted(self._number, self._new_id(), call.name))

    def _fail(self, events: list[AnswerEvent], rest: str) -> None:
        """What was read of a call, and the rest of its message, is content."""
        if self._announced and self._call is not None:
            self._tell_arguments(events, self._call)
            events.append(CallBroken(self._number))
        events.append(ContentDelta("".join(self._raw) + rest))
        self._kind, self._call, self._announced, self._raw = "content", None, False, []

    def _end_call(self, events: list[AnswerEvent]) -> None:
        events.append(CallEnded(self._number))
        self.num_calls += 1
        self._call, self._announced, self._raw = None, False, []

    def _end_message(self, events: list[AnswerEvent]) -> None:
        if self._call is not None and self._announced:
            self._fail(events, "")
        elif self._call is not None:  # nothing but whitespace: it has no arguments
            self._announce(events)
            events.append(ArgumentsDelta(self._number, "{}"))
            self._end_call(events)
        self._kind = None


def _uncertain(text: str) -> int:
    """Characters at the end that may begin the mark of an end."""
    longest = min(max(map(len, _ENDS)) - 1, len(text))
    lengths = range(longest, 0, -1)
    return next((n for n in lengths if any(mark.startswith(text[-n:]) for mark in _ENDS)), 0)


def _merged(events: list[AnswerEvent]) -> list[AnswerEvent]:
    """Neighbours of a kind as one."""
    merged: list[AnswerEvent] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, ContentDelta) and isinstance(last, ContentDelta):
            merged[-1] = ContentDelta(last.text + event.text)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            merged[-1] = ReasoningDelta(last.text + event.text)
        elif isinstance(event, ArgumentsDelta) and isinstance(last, ArgumentsDelta):
            merged[-1] = ArgumentsDelta(event.index, last.text + event.text)
        else:
            merged.append(event)
    return merged
