"""The form of calls as a grammar for constrained decoding, in llguidance's dialect of Lark.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
Markers that a tokenizer holds as special tokens are named by their ids: text cannot match them.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.text.exact_numbers import as_rule, has_inexact
from loire.text.json_schema import ready_to_enforce
from loire.text.reasoning_grammar import Thoughts, fixed_text, nested
from loire.text.tools.definitions import MAX_CALLS, Tool, ToolUse
from loire.text.tools.formats import ToolFormat

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_WRITTEN = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""JSON as chat templates write it, so with as much whitespace and no more."""


class CallGrammar:
    """Writes the grammar of answers with calls in one format.

    thoughts: what may stand before the answer.
    form: what an answer without calls must look like; None leaves it free.
    check: raises RequestError for a constraint that cannot be compiled; tools that are not strict
    and have one are called with any object.
    """

    def __init__(
        self,
        tool_format: ToolFormat,
        thoughts: Thoughts,
        form: StructuredOutputs | None = None,
        check: Callable[[StructuredOutputs], None] | None = None,
    ) -> None:
        self._format = tool_format
        self._thoughts = thoughts
        self._special_id = thoughts.special_id
        self._form = form
        self._check = check
        self._until: dict[str, str] = {}
        """Names of the rules for texts that end with one, by that."""
        self._markers = re.compile("(" + "|".join(map(re.escape, tool_format.markers)) + ")")

    def write(self, use: ToolUse) -> str:
        """The grammar of all answers that a use of tools allows."""
        rules = ["%llguidance {}"]
        answer = "calls" if use.mode == "required" else self._free_answer(rules)
        rules.append(f"start: {self._thoughts.write(rules)}{answer}")
        most = 1 if self._format.single else MAX_CALLS
        limit = min(most, use.max_calls or most)
        more = f" (between call){{0,{limit - 1}}}" if limit > 1 else ""
        rules += [
            f"calls: {self.text(self._format.before)} first_calls",
            f"first_calls: call{more} {self.text(self._format.after)}",
            f"between: {self.text(self._format.between)}",
        ]
        names = [f"call_{number}" for number in range(len(use.callable_tools))]
        rules.append(f"call: {' | '.join(names)}")
        for name, tool in zip(names, use.callable_tools, strict=True):
            exact = tool.strict or use.mode == "required"
            rules.append(f"{name}: {self._call(tool, use.tools.index(tool), exact=exact)}")
        for closing, name in self._until.items():
            rules.append(rf"{name}[lazy]: /(.|\n)*{_in_regex(closing)}/")
        return "\n".join(rules) + "\n"

    def _free_answer(self, rules: list[str]) -> str:
        """An answer with or without calls: what follows an opening must be calls."""
        form = self._format
        opening = self._thoughts.answer_opening()
        if self._form is not None:
            rules.append(f"answer: {opening}{nested(self._form)}")
            return "(calls | answer)"
        if opening:
            rules.append(f"answer: {opening}" + r"/(.|\n)*/")
            return "(calls | answer)"
        # Where calls need no mark, what begins with a brace would be taken for one.
        text = r"/\s*([^{\s](.|\n)*)?/" if form.bare else r"/(.|\n)*/"
        rules.append(f"TEXT: {text}")
        mark = form.first_mark
        token = self._special_id(mark)
        if not form.bare:
            rules.append(f"lead: {self.until(mark)}")
        elif token is None:
            rules.append(f"lead[lazy]: TEXT {json.dumps(mark, ensure_ascii=False)}")
        else:
            rules.append(f"lead: TEXT <[{token}]>")
        rest = self.text(form.before.removeprefix(mark))
        alone = " | calls" if form.bare and not form.before else ""
        return f"(TEXT | lead {rest} first_calls{alone})"

    def _call(self, tool: Tool, number: int, *, exact: bool) -> str:
        schema = self._schema(tool, number) if exact else ANY_OBJECT
        form = self._format
        if form.block is not None:
            return form.block.write(tool.name, schema, self)
        arguments = self.json(schema)
        if form.name_end:
            return f"{self.text(tool.name + form.name_end)} {arguments}"
        head = f'{{"name": {json.dumps(tool.name)}, "{form.arguments_key}": '
        return f'{json.dumps(head, ensure_ascii=False)} {arguments} "}}"'

    def _schema(self, tool: Tool, number: int) -> Mapping[str, Any]:
        """What the arguments of a tool follow; if it is not strict, as far as that can be enforced.

        number: its place among all tools.

        Raises RequestError, naming the tool, if it is strict and cannot be enforced.
        """
        try:
            schema = ready_to_enforce(tool.parameters, strict=tool.strict)
            self.json(schema)
            if tool.strict or self._check is None:
                return schema
            self._check(StructuredOutputs(json=schema))
        except RequestError as error:
            if not tool.strict:
                return ANY_OBJECT
            raise RequestError(
                f"the parameters of tool {tool.name!r} cannot be enforced: {error}; simplify "
                f"them, or leave calls free: tool_choice 'auto', and strict false",
                param=f"tools[{number}].function.parameters",
            ) from error
        return schema

    def json(self, schema: Mapping[str, Any]) -> str:
        """A JSON value, written as chat templates write it."""
        if has_inexact(schema):
            return as_rule(schema, _WRITTEN)
        return f"%json {json.dumps({**schema, 'x-guidance': _WRITTEN}, ensure_ascii=False)}"

    def until(self, closing: str) -> str:
        """Any text, up to a closing text and with it."""
        pieces = [piece for piece in self._markers.split(closing) if piece]
        special = next((n for n, p in enumerate(pieces) if self._special_id(p) is not None), None)
        if special is not None:
            # What is said ends with the text before the token, if there is any.
            before = _in_regex("".join(pieces[:special]))
            return f"/(.|\\n)*{before}/ {self.text(''.join(pieces[special:]))}"
        if closing not in self._until:
            self._until[closing] = f"until_{len(self._until)}"
        return self._until[closing]

    def text(self, text: str) -> str:
        """A fixed text, its special tokens by their ids."""
        parts = (part for part in self._markers.split(text) if part)
        return " ".join(fixed_text(part, self._special_id) for part in parts) or '""'


def _in_regex(text: str) -> str:
    """A text within an expression between slashes."""
    return re.escape(text).replace("/", r"\/").replace("\n", "n")
