"""The form of calls as a grammar for constrained decoding, in llguidance's dialect of Lark.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
Markers that a tokenizer holds as special tokens are named by their ids: text cannot match them.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from loire.text.reasoning import ReasoningMarks
from loire.text.tools.definitions import MAX_CALLS, Tool, ToolUse
from loire.text.tools.formats import ToolFormat

SpecialId = Callable[[str], int | None]
"""The id of a special token by its text; None for what is no special token."""

Thinking = Literal["none", "may", "inside"]
"""Whether thoughts may precede the answer, or the prompt has begun them."""

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_WRITTEN = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""JSON as chat templates write it, so with as much whitespace and no more."""
_COMBINING = frozenset(("allOf", "anyOf", "oneOf", "$ref", "if", "then", "else", "not",
                        "patternProperties", "additionalProperties",
                        "unevaluatedProperties"))  # fmt: skip
_ANYTHING = r"/(.|\n)*/"


class CallGrammar:
    """Writes the grammar of answers with calls in one format.

    marks, thinking: thoughts before the answer, if the model thinks.
    answer_schema: JSON schema that an answer without calls must follow, as JSON text.
    """

    def __init__(
        self,
        tool_format: ToolFormat,
        special_id: SpecialId,
        *,
        marks: ReasoningMarks | None = None,
        thinking: Thinking = "none",
        answer_schema: str | None = None,
    ) -> None:
        self._format = tool_format
        self._special_id = special_id
        self._marks = marks
        self._thinking = thinking
        self._answer_schema = answer_schema
        markers = tool_format.markers
        if marks is not None:
            markers += (marks.opening, marks.closing)
        self._markers = re.compile("(" + "|".join(map(re.escape, markers)) + ")")

    def write(self, use: ToolUse) -> str:
        """The grammar of all answers that a use of tools allows."""
        rules = ["%llguidance {}"]
        answer = "calls" if use.mode == "required" else self._free_answer(rules)
        rules.append(f"start: {self._thoughts(rules)}{answer}")
        limit = MAX_CALLS if use.max_calls is None else use.max_calls
        more = f" (between call){{0,{limit - 1}}}" if limit > 1 else ""
        rules += [
            f"calls: {self._text(self._format.before)} first_calls",
            f"first_calls: call{more} {self._text(self._format.after)}",
            f"between: {self._text(self._format.between)}",
        ]
        names = [f"call_{number}" for number in range(len(use.callable_tools))]
        rules.append(f"call: {' | '.join(names)}")
        for name, tool in zip(names, use.callable_tools, strict=True):
            rules.append(f"{name}: {self._call(tool, exact=tool.strict or use.mode == 'required')}")
        return "\n".join(rules) + "\n"

    def _free_answer(self, rules: list[str]) -> str:
        """An answer with or without calls: what follows an opening must be calls."""
        form = self._format
        if self._answer_schema is not None:
            return f"(calls | %json {self._answer_schema})"
        rules.append(f"TEXT: {_ANYTHING}")
        if form.bare:
            # What begins with a brace would be taken for a call.
            rules.append(r"OTHER: /\s*([^{\s](.|\n)*)?/")
        text = "OTHER" if form.bare else "TEXT"
        alone = " | calls" if form.bare and not form.before else ""
        token = self._special_id(form.opening)
        if token is not None:
            lead = f"{text} <[{token}]>"
        else:
            rules.append(f"lead[lazy]: TEXT {json.dumps(form.opening)}")
            lead = "lead"
        rest = self._text(form.before.removeprefix(form.opening))
        return f"({text} | {lead} {rest} first_calls{alone})"

    def _thoughts(self, rules: list[str]) -> str:
        if self._marks is None or self._thinking == "none":
            return ""
        closing = self._marks.closing
        token = self._special_id(closing)
        if token is not None:
            rules.append(f"thoughts: {_ANYTHING} <[{token}]> GAP")
        else:
            rules.append(f"thinking[lazy]: {_ANYTHING[:-1]}{_escaped(closing)}/")
            rules.append("thoughts: thinking GAP")
        rules.append(r"GAP: /\n{0,2}/")
        if self._thinking == "inside":
            return "thoughts "
        return f"({self._text(self._marks.opening)} thoughts)? "

    def _call(self, tool: Tool, *, exact: bool) -> str:
        schema = dict(tool.parameters if exact else ANY_OBJECT)
        if exact and "properties" in schema and not _COMBINING.intersection(schema):
            # A subset of what the schema allows: models do not need to invent properties.
            schema["additionalProperties"] = False
        schema["x-guidance"] = _WRITTEN
        arguments = f"%json {json.dumps(schema, ensure_ascii=False)}"
        form = self._format
        if form.name_end:
            return f"{self._text(tool.name + form.name_end)} {arguments}"
        head = f'{{"name": {json.dumps(tool.name)}, "{form.arguments_key}": '
        return f'{json.dumps(head, ensure_ascii=False)} {arguments} "}}"'

    def _text(self, text: str) -> str:
        """A fixed text, its special tokens by their ids."""
        parts = []
        for part in self._markers.split(text):
            token = self._special_id(part) if self._markers.fullmatch(part) else None
            if token is not None:
                parts.append(f"<[{token}]>")
            elif part:
                parts.append(json.dumps(part, ensure_ascii=False))
        return " ".join(parts) or '""'


def _escaped(text: str) -> str:
    """A text inside a regular expression of Lark, which ends at a slash."""
    return re.escape(text).replace("/", r"\/")
