"""Calls whose arguments are texts between tags: what several families share."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loire.text.tools.argument_types import argument_value, as_json, is_text, property_schema
from loire.text.tools.blocks import ReadCalls, Rules, Schemas

_DEFINITIONS = ("$defs", "definitions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """How a call is written: `head` with the name, parameters, `tail`.

    head, key: what stands around `NAME` and `KEY`; tail, end: what closes a call and a value.
    call, parameter: expressions that find them, generous in whitespace; the groups are name and
    body, or key and value. Where key has IS_TEXT for whether the value is a text, its group is
    `is_text`, and the value's `value`.
    """

    head: str
    key: str
    end: str
    tail: str
    call: re.Pattern[str]
    parameter: re.Pattern[str]

    def read(self, inner: str, schemas: Schemas) -> ReadCalls | None:
        """The calls in a block."""
        calls = []
        place = 0
        for found in self.call.finditer(inner):
            arguments = self._arguments(found[2], schemas.get(found[1]))
            if inner[place : found.start()].strip() or arguments is None:
                return None
            calls.append((found[1], as_json(arguments)))
            place = found.end()
        return None if inner[place:].strip() else calls

    def _arguments(self, body: str, schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        arguments: dict[str, Any] = {}
        place = 0
        for found in self.parameter.finditer(body):
            if body[place : found.start()].strip():
                return None
            key, named = found[1], found.groupdict()
            text = named.get("value", found[2]) or ""
            if named.get("is_text") == "true":
                arguments[key] = text
            else:
                arguments[key] = argument_value(text, property_schema(schema, key))
            place = found.end()
        return None if body[place:].strip() else arguments

    def write(self, name: str, schema: Mapping[str, Any], rules: Rules) -> str:
        """The grammar of one call: the parameters that the schema knows, in its order."""
        properties = schema.get("properties")
        if not isinstance(properties, Mapping):
            before, after = self.key.split("KEY")
            said = ' ("true" | "false") '.join(map(rules.text, after.split("IS_TEXT")))
            key = f"{rules.text(before)} /[A-Za-z_][A-Za-z0-9_-]*/ {said}"
            parameters = f"({key} {rules.until(self.end)})*"
        else:
            required = schema.get("required", ())
            parts = [(self._parameter(key, schema, rules), key in required) for key in properties]
            parameters = " ".join(part if always else f"({part})?" for part, always in parts)
        head = rules.text(self.head.replace("NAME", name))
        return f"{head} {parameters} {rules.text(self.tail)}"

    def _parameter(self, key: str, schema: Mapping[str, Any], rules: Rules) -> str:
        about = property_schema(schema, key)
        is_json = not (is_text(about) or not about or "string" in str(about.get("type", "string")))
        written = self.key.replace("IS_TEXT", "false" if is_json else "true").replace("KEY", key)
        opening = rules.text(written)
        values = about.get("enum", [about["const"]] if "const" in about else None)
        if values is not None and all(isinstance(value, str) for value in values):
            choice = " | ".join(rules.text(value) for value in values)
            return f"{opening} ({choice}) {rules.text(self.end)}"
        if not is_json:
            return f"{opening} {rules.until(self.end)}"
        whole = {**about, **{name: schema[name] for name in _DEFINITIONS if name in schema}}
        return f"{opening} {rules.json(whole)} {rules.text(self.end)}"
