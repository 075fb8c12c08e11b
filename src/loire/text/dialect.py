"""What a model's chat template tells of its ways: how it calls tools and whether it thinks."""

from collections.abc import Set
from dataclasses import dataclass

from loire.text.reasoning import GEMMA_THINK, MISTRAL_THINK, THINK, ReasoningMarks
from loire.text.tools.families import choose_format
from loire.text.tools.formats import GENERIC, ToolFormat
from loire.text.tools.harmony import HARMONY_MARKS


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one model writes. knows_tools: its template renders tools and calls itself."""

    tool_format: ToolFormat
    knows_tools: bool
    reasoning: ReasoningMarks | None

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts with a meaning of their own in what the model writes."""
        marks = self.reasoning
        return self.tool_format.markers + (() if marks is None else marks.markers)

    @property
    def has_channels(self) -> bool:
        """Whether answers are messages in channels (loire.text.tools.harmony)."""
        return self.reasoning is HARMONY_MARKS


def read_dialect(template: str, variables: Set[str]) -> Dialect:
    """The dialect of a template, from its source and the variables that it reads."""
    tool_format = choose_format(template) if "tools" in variables else GENERIC
    marks = (THINK, MISTRAL_THINK, GEMMA_THINK)
    channels = HARMONY_MARKS.answer in template or HARMONY_MARKS.opening in template
    return Dialect(
        tool_format=tool_format,
        knows_tools=tool_format is not GENERIC,
        reasoning=HARMONY_MARKS
        if channels
        else next((mark for mark in marks if mark.closing in template), None),
    )
