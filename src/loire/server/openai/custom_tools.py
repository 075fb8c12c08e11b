"""Calls of custom tools: functions of one text, whose input is told as that text."""

import json
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

from loire.text.tools.events import (
    AnswerEvent,
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
)


@dataclass(frozen=True, slots=True)
class CustomCallStarted:
    """A call of a custom tool begins."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CustomInput:
    """Its whole input: text cannot be told from JSON before its end."""

    index: int
    text: str


ClientEvent = AnswerEvent | CustomCallStarted | CustomInput


class CustomCalls:
    """Turns the events of calls of custom tools, those of these names, into their own."""

    def __init__(self, names: Set[str]) -> None:
        self._names = names
        self._open: dict[int, str] = {}
        """Arguments so far, as JSON, of each custom call that has not ended."""

    def read(self, events: Iterable[AnswerEvent]) -> Iterator[ClientEvent]:
        """The events as a client of custom tools knows them."""
        for event in events:
            match event:
                case CallStarted(index, call_id, name) if name in self._names:
                    self._open[index] = ""
                    yield CustomCallStarted(index, call_id, name)
                case ArgumentsDelta(index, text) if index in self._open:
                    self._open[index] += text
                case CallEnded(index) if index in self._open:
                    yield CustomInput(index, input_text(self._open.pop(index)))
                    yield event
                case CallBroken(index):
                    self._open.pop(index, None)
                    yield event
                case _:
                    yield event


def input_text(arguments: str) -> str:
    """The input in a custom tool's arguments; themselves, if the model wrote something else."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments
