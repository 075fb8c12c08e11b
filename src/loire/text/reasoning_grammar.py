"""Thoughts before a constrained answer, in llguidance's dialect of Lark: only the answer is bound.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from loire.base.structured_outputs import StructuredOutputs
from loire.text.grammar_text import grammar_text
from loire.text.reasoning import ReasoningMarks

SpecialId = Callable[[str], int | None]
"""The id of a special token by its text; None for what is no special token."""

Thinking = Literal["none", "may", "inside"]
"""Whether thoughts may precede the answer, or the prompt has begun them."""


@dataclass(frozen=True, slots=True)
class Thoughts:
    """What may stand before the answer. marks: None for a model that does not think."""

    marks: ReasoningMarks | None
    thinking: Thinking
    special_id: SpecialId

    @property
    def possible(self) -> bool:
        """Whether there may be any."""
        return self.marks is not None and self.thinking != "none"

    def write(self, rules: list[str]) -> str:
        """What stands before the answer in a rule, and the rules that it needs."""
        if self.marks is None or self.thinking == "none":
            return ""
        closing = self.marks.closing
        first = next(iter(self._pieces(closing)))
        if self.special_id(first) is not None:
            rules.append(rf"thoughts: /(.|\n)*/ {self._text(closing)} GAP")
        else:
            end = re.escape(closing).replace("/", r"\/")
            rules.append(rf"thinking[lazy]: /(.|\n)*{end}/")
            rules.append("thoughts: thinking GAP")
        rules.append(r"GAP: /\n{0,2}/")
        if self.thinking == "inside":
            return "thoughts "
        return f"({self._text(self.marks.opening)} thoughts)? "

    def answer_opening(self) -> str:
        """What stands before an answer in text, in a rule."""
        opening = "" if self.marks is None else self.marks.answer
        return f"{self._text(opening)} " if opening else ""

    def _text(self, text: str) -> str:
        """A fixed text, its special tokens by their ids."""
        return " ".join(fixed_text(piece, self.special_id) for piece in self._pieces(text))

    def _pieces(self, text: str) -> list[str]:
        """Marks, and what stands between them."""
        assert self.marks is not None, "there are thoughts"
        marks = "|".join(map(re.escape, self.marks.markers))
        return [piece for piece in re.split(f"({marks})", text) if piece]

    def before(self, form: StructuredOutputs) -> StructuredOutputs:
        """The constraint of an answer in this form, with or without thoughts before it."""
        if not self.possible:
            return form
        rules = ["%llguidance {}"]
        thoughts = self.write(rules)
        rules += [f"start: {thoughts}answer", f"answer: {self.answer_opening()}{nested(form)}"]
        return StructuredOutputs(grammar="\n".join(rules) + "\n")


def fixed_text(token: str, special_id: SpecialId) -> str:
    """A text that must stand there. A special token is named by its id: text cannot match it."""
    token_id = special_id(token)
    return json.dumps(token, ensure_ascii=False) if token_id is None else f"<[{token_id}]>"


def nested(form: StructuredOutputs) -> str:
    """A constraint as part of a rule. Raises RequestError if it is too large or no JSON."""
    text = grammar_text(form)
    if form.grammar is None:
        [compiled] = json.loads(text)["grammars"]
        if compiled["json_schema"] is not None:
            return f"%json {json.dumps(compiled['json_schema'], ensure_ascii=False)}"
        text = compiled["lark_grammar"]
    return f"%lark {{\n{text}\n}}"
