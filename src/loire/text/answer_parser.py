"""From the text of an answer to its parts: thoughts, content and calls."""

from loire.text.reasoning import ReasoningSplitter
from loire.text.tools.events import AnswerEvent, ContentDelta, ReasoningDelta
from loire.text.tools.families import CallParser


class AnswerParser:
    """Reads one answer, in pieces of any size. None for what the answer cannot hold."""

    def __init__(self, splitter: ReasoningSplitter | None, tools: CallParser | None) -> None:
        self._splitter = splitter
        self._tools = tools

    @property
    def num_calls(self) -> int:
        """Calls that came to their end."""
        return 0 if self._tools is None else self._tools.num_complete

    @property
    def in_call(self) -> bool:
        """Whether a call was begun that has not come to its end."""
        return self._tools is not None and self._tools.in_call

    def push(self, text: str) -> list[AnswerEvent]:
        """Take in text: what has become certain."""
        if self._splitter is not None:
            return self._read_all(self._splitter.push(text))
        return self._read(ContentDelta(text)) if text else []

    def finish(self, *, truncated: bool) -> list[AnswerEvent]:
        """What is certain now that the text has ended (truncated: because of its length)."""
        events: list[AnswerEvent] = []
        if self._splitter is not None:
            events += self._read_all(self._splitter.finish())
        if self._tools is not None:
            events += self._tools.finish(truncated=truncated)
        return events

    def _read_all(self, parts: list[ReasoningDelta | ContentDelta]) -> list[AnswerEvent]:
        return [event for part in parts for event in self._read(part)]

    def _read(self, part: ReasoningDelta | ContentDelta) -> list[AnswerEvent]:
        if isinstance(part, ReasoningDelta) or self._tools is None:
            return [part]
        return [*self._tools.push(part.text)]
