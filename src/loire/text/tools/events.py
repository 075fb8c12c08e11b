"""What an answer consists of, piece by piece, while its text comes in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of what the model says."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A call of a tool begins. index: its number among the calls of this answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of a call's arguments: joined, they are one JSON object as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is complete and its arguments are valid JSON."""

    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """What was told of this call is void: its text follows as content, from its very beginning."""

    index: int


ToolEvent = ContentDelta | CallStarted | ArgumentsDelta | CallEnded | CallBroken
AnswerEvent = ReasoningDelta | ToolEvent
