"""Calls that are written between two marks, in a form of their own: found and read as a whole.

Content streams; a call is told when its closing mark has come, since only then its arguments are
known as JSON. What cannot be read is content.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from loire.text.tools.events import (
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    ContentDelta,
    ToolEvent,
)

MAX_CLOSINGS = 8
"""Closing marks after which a block that cannot be read is content: arguments may hold some."""

Schemas = Mapping[str, Mapping[str, Any]]
"""JSON schema of the parameters, by the tool's name."""
ReadCalls = Sequence[tuple[str, str]]
"""Names, and arguments as JSON text."""


class Rules(Protocol):
    """Writes parts of a grammar (tools/grammar.py)."""

    def text(self, text: str) -> str:
        """A fixed text, its special tokens by their ids."""
        ...

    def until(self, closing: str) -> str:
        """Any text, up to a closing text and with it."""
        ...

    def json(self, schema: Mapping[str, Any]) -> str:
        """A JSON value."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A form of calls.

    read: the calls between the marks; None if it is none of the tools', or no call.
    write: grammar of one call: its name and what its arguments follow.
    tokens: further texts that a tokenizer may hold as special tokens.
    around: marks around several blocks, which belong to no content.
    """

    read: Callable[[str, Schemas], ReadCalls | None]
    write: Callable[[str, Mapping[str, Any], Rules], str]
    tokens: tuple[str, ...] = ()
    around: tuple[str, ...] = ()


def separated(parts: Mapping[str, str], required: Sequence[str], comma: str) -> str:
    """Grammar of named parts, those that must be there first, with commas between them."""
    first = [part for name, part in parts.items() if name in required]
    others = [part for name, part in parts.items() if name not in required]
    more = [f"({comma} {part})?" for part in others]
    if first:
        return " ".join([f" {comma} ".join(first), *more])
    ways = [" ".join([part, *more[number + 1 :]]) for number, part in enumerate(others)]
    return f"({' | '.join(ways)})?" if ways else '""'


class BlockParser:
    """Turns the text of one answer, in pieces of any size, into content and calls."""

    def __init__(
        self,
        opening: str,
        closing: str,
        block: Block,
        schemas: Schemas,
        *,
        bare: bool,
        max_calls: int | None,
        new_id: Callable[[], str],
    ) -> None:
        self._opening, self._closing, self._block = opening, closing, block
        self._schemas = schemas
        self._bare = bare
        """Whether an answer that begins with a bracket may be calls without marks."""
        self._max_calls = max_calls
        self._new_id = new_id
        self._marks = (opening, *block.around)
        self._held = ""
        """Text of which it is open whether it is content; behind an opening, the block so far."""
        self._inside = False
        self._after = False
        """Whether nothing but whitespace came since a mark: it belongs to no content."""
        self._searched = 0
        """Characters of the block in which no closing begins."""
        self._num_closings = 0
        self._events: list[ToolEvent] = []
        self.num_complete = 0

    @property
    def in_call(self) -> bool:
        """Whether a call was told that has not come to its end: never, they are told whole."""
        return False

    def push(self, text: str) -> list[ToolEvent]:
        """Take in text: what has become certain."""
        self._held += text
        if self._bare and self._held.strip() and not self._held.lstrip().startswith("["):
            self._bare = False
        if self._bare:
            return []
        self._read()
        return self._take()

    def finish(self, *, truncated: bool) -> list[ToolEvent]:
        """What is certain now that the text has ended (truncated: because of its length)."""
        if self._bare:
            self._bare = False
            if not truncated and self._tell(self._held.strip()):
                self._held, self._after = "", True
            else:
                self._read()
        if self._inside:
            inner, self._inside = self._held, False
            # Some models end an answer instead of their last call.
            if truncated or not self._tell(inner.strip()):
                self._say(self._opening + inner)
            self._held = ""
        rest, self._held = self._held, ""
        self._say(rest.lstrip() if self._after else rest)
        return self._take()

    def _read(self) -> None:
        """Tell what is certain of the text that is held."""
        while (self._inside and self._read_block()) or (not self._inside and self._read_content()):
            pass

    @property
    def _may_open(self) -> bool:
        return self._max_calls is None or self.num_complete < self._max_calls

    def _read_content(self) -> bool:
        """Tell content up to the next mark; whether there is one."""
        if self._after:
            self._held = self._held.lstrip()
        if not self._may_open:
            self._say(self._held)
            self._held = ""
            return False
        places = [(self._held.find(mark), mark) for mark in self._marks]
        found = min((place for place in places if place[0] >= 0), default=None)
        if found is None:
            certain = len(self._held) - self._uncertain()
            self._say(self._held[:certain])
            self._held = self._held[certain:]
            return False
        place, mark = found
        self._say(self._held[:place].rstrip())
        self._held = self._held[place + len(mark) :]
        self._inside, self._after = mark == self._opening, True
        self._searched = self._num_closings = 0
        return True

    def _uncertain(self) -> int:
        """Characters at the end that may begin a mark, and the whitespace before them."""
        held = self._held
        longest = max(map(len, self._marks))
        for length in range(min(longest - 1, len(held)), 0, -1):
            if any(mark.startswith(held[-length:]) for mark in self._marks):
                break
        else:
            length = 0
        certain = held[: len(held) - length]
        return len(held) - len(certain.rstrip())

    def _read_block(self) -> bool:
        """Read a block whose closing has come; whether there is more to do."""
        place = self._held.find(self._closing, self._searched)
        if place < 0:
            self._searched = max(0, len(self._held) - len(self._closing) + 1)
            return False
        again = self._held.find(self._opening, 0, place)
        if again >= 0 and self._num_closings:  # another block has come to its end in this one
            self._say(self._opening + self._held[:again])
            self._held, self._inside = self._held[again:], False
        elif self._tell(self._held[:place]):
            self._held = self._held[place + len(self._closing) :]
            self._inside, self._after = False, True
        elif self._num_closings == MAX_CLOSINGS:
            self._say(self._opening)
            self._inside = False
        else:
            self._searched = place + len(self._closing)
            self._num_closings += 1
        return True

    def _tell(self, inner: str) -> bool:
        """Tell the calls of a block; False if it cannot be read."""
        calls = self._block.read(inner, self._schemas)
        if not calls:
            return False
        for name, arguments in calls:
            if not self._may_open:
                break
            index = self.num_complete
            self._events += [
                CallStarted(index, self._new_id(), name),
                ArgumentsDelta(index, arguments),
                CallEnded(index),
            ]
            self.num_complete += 1
        return True

    def _say(self, text: str) -> None:
        if text:
            self._events.append(ContentDelta(text))
            self._after = False

    def _take(self) -> list[ToolEvent]:
        events, self._events = self._events, []
        merged: list[ToolEvent] = []
        for event in events:
            last = merged[-1] if merged else None
            if isinstance(event, ContentDelta) and isinstance(last, ContentDelta):
                merged[-1] = ContentDelta(last.text + event.text)
            else:
                merged.append(event)
        return merged
