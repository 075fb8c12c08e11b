"""Tells what a model thinks from what it answers: <think> ... </think> before the answer.

Models in the manner of DeepSeek R1 and Qwen 3 write both marks, or their template writes the first
one at the end of the prompt.
"""

from dataclasses import dataclass

from loire.text.tools.events import ContentDelta, ReasoningDelta


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What stands before and after the thoughts.

    answer: what stands before an answer in text. tokens: all of these that a tokenizer may hold as
    special tokens, where they are more than the first two.
    """

    opening: str
    closing: str
    answer: str = ""
    tokens: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts with a meaning of their own, which a tokenizer may hold as special tokens."""
        return self.tokens or (self.opening, self.closing)


MOST_SPACE = 256
"""Characters of whitespace before a mark that are dropped. An answer may be made of nothing else,
and what may be dropped is held, and looked at with each piece."""

THINK = ReasoningMarks("<think>", "</think>")
MISTRAL_THINK = ReasoningMarks("[THINK]", "[/THINK]")
GEMMA_THINK = ReasoningMarks(
    "<|channel>thought\n", "<channel|>", tokens=("<|channel>", "<channel|>")
)
"""https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4"""


class ReasoningSplitter:
    """Splits an answer that comes in pieces of any size; what is told does not depend on them.

    inside: the prompt ended with the opening mark. Whitespace around the marks is dropped, before
    them no more than MOST_SPACE.
    """

    def __init__(self, marks: ReasoningMarks, *, inside: bool = False) -> None:
        self._marks = marks
        self._inside = inside
        self._done = False
        """Whether thinking is over, or there was none: all that comes is content."""
        self._thought = False
        """Whether any thought was told."""
        self._trim = False
        self._held = ""

    @property
    def reasoning(self) -> bool:
        """Whether what comes now would be thoughts."""
        return self._inside

    def push(self, text: str) -> list[ReasoningDelta | ContentDelta]:
        """Take in text: what has become certain, thoughts before content."""
        told: list[ReasoningDelta | ContentDelta] = []
        text, self._held = self._held + text, ""
        if not self._done and not self._inside:
            text = self._find_opening(text)
        if self._inside:
            thought, text = self._find_closing(text)
            if not self._thought:
                thought = thought.lstrip()
            if thought:
                self._thought = True
                told.append(ReasoningDelta(thought))
        if self._done:
            if self._trim:
                text = text.lstrip()
                self._trim = not text
            if text:
                told.append(ContentDelta(text))
        return told

    def finish(self) -> list[ReasoningDelta | ContentDelta]:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        if self._inside:
            held = held if self._thought else held.lstrip()
            return [ReasoningDelta(held)] if held.strip() else []
        return [ContentDelta(held)] if held else []

    def _find_opening(self, text: str) -> str:
        """Decide whether the answer begins with a thought; returns the text that follows."""
        start = text[:MOST_SPACE]
        stripped, opening = text[len(start) - len(start.lstrip()) :], self._marks.opening
        if stripped.startswith(opening):
            self._inside = True
            return stripped[len(opening) :]
        if opening.startswith(stripped):
            self._held = text
            return ""
        self._done = True
        return text

    def _find_closing(self, text: str) -> tuple[str, str]:
        """The thoughts in a text, and what follows them."""
        closing = self._marks.closing
        thought, found, after = text.partition(closing)
        if found:
            self._inside, self._done, self._trim = False, True, True
            return _trimmed(thought), after
        length = next(n for n in range(len(closing) - 1, -1, -1) if text.endswith(closing[:n]))
        certain = _trimmed(text[: len(text) - length])
        self._held = text[len(certain) :]
        return certain, ""


def _trimmed(text: str) -> str:
    """Without the whitespace at its end, of which no more than MOST_SPACE is looked at."""
    end = text[-MOST_SPACE:]
    return text[: len(text) - len(end) + len(end.rstrip())]
