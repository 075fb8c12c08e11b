"""The text of an answer in its parts: thoughts, content, and calls of tools."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from loire.base.outputs import CompletionOutput, RequestOutput, ToolCall
from loire.text.answer_parser import AnswerParser
from loire.text.tools.events import (
    AnswerEvent,
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ReasoningDelta,
)
from loire.text.tools.harmony import HarmonyParser

TextFinish = Literal["stop", "length"]
AnswerFinish = Literal["stop", "length", "tool_calls"]


class AnswerReader:
    """Turns the text of one answer into events.

    must_call, is_json: what the answer has to be. One that a stop string ended before it was that
    is told as one that was too long.
    """

    def __init__(
        self, parser: AnswerParser | HarmonyParser, must_call: bool, is_json: bool
    ) -> None:
        self._parser = parser
        self._must_call = must_call
        self._is_json = is_json
        self._content: list[str] = []
        """Of an answer that has to be JSON."""
        self._cut = False

    def read(self, text: str, finish_reason: TextFinish | None) -> list[AnswerEvent]:
        """What is certain after more text, and, with a finish reason, after all of it."""
        events = self._parser.push(text)
        if finish_reason is not None:
            within = self._must_call and self._parser.in_call
            events += self._parser.finish(truncated=finish_reason == "length" or within)
            # Asked last: some forms of calls are certain only at the end of the text.
            self._cut = within or (self._must_call and not self._parser.num_calls)
        if self._is_json:
            self._content += (e.text for e in events if isinstance(e, ContentDelta))
            if finish_reason is not None and not self._parser.num_calls:
                self._cut = not _is_json("".join(self._content))
        return events

    def finish_reason(self, finish_reason: TextFinish) -> AnswerFinish:
        """How the answer ended, once everything was read."""
        if finish_reason == "length" or self._cut:
            return "length"
        return "tool_calls" if self._parser.num_calls else "stop"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@dataclass(slots=True)
class Answer:
    """An answer, or what is new of it. tool_calls: those that have come to their end."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


class AnswerCollector:
    """Joins the events of one answer."""

    def __init__(self) -> None:
        self._open: dict[int, ToolCall] = {}
        """Calls that have not come to their end."""

    def add(self, events: Iterable[AnswerEvent]) -> Answer:
        """What is new with these."""
        answer = Answer()
        for event in events:
            match event:
                case ReasoningDelta(text):
                    answer.reasoning += text
                case ContentDelta(text):
                    answer.content += text
                case CallStarted(index, call_id, name):
                    self._open[index] = ToolCall(call_id, name, "")
                case ArgumentsDelta(index, text):
                    call = self._open[index]
                    self._open[index] = replace(call, arguments=call.arguments + text)
                case CallBroken(index):
                    del self._open[index]
                case CallEnded(index):
                    answer.tool_calls.append(self._open.pop(index))
        return answer

    def rest(self) -> list[ToolCall]:
        """Calls that never came to their end: the answer was too long."""
        return list(self._open.values())


def collect(events: Iterable[AnswerEvent]) -> Answer:
    """A whole answer from its events."""
    collector = AnswerCollector()
    answer = collector.add(events)
    answer.tool_calls += collector.rest()
    return answer


class OutputReader:
    """Reads the answers of one request: in its outputs, thoughts and calls leave the text and get
    fields of their own. readers: one for each answer.
    """

    def __init__(self, readers: Sequence[AnswerReader]) -> None:
        self._readers = [(reader, AnswerCollector()) for reader in readers]

    def read(self, output: RequestOutput) -> RequestOutput:
        """What is new, or the only output with everything. Call it with each output in turn."""
        return replace(output, outputs=tuple(map(self._read, output.outputs)))

    def _read(self, completion: CompletionOutput) -> CompletionOutput:
        reason = completion.finish_reason
        if reason not in (None, "stop", "length"):
            return completion
        reader, collector = self._readers[completion.index]
        answer = collector.add(reader.read(completion.text, reason))
        if reason is not None:
            answer.tool_calls += collector.rest()
            reason = reader.finish_reason(reason)
        return replace(
            completion,
            text=answer.content,
            reasoning=answer.reasoning,
            tool_calls=tuple(answer.tool_calls),
            finish_reason=reason,
        )
