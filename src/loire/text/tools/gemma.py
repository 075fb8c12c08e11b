"""Gemma 4: <|tool_call>call:name{key:value}<tool_call|>, texts between tokens of their own.

https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
"""

from collections.abc import Mapping
from typing import Any

from loire.text.tools.argument_types import as_json, property_schema
from loire.text.tools.blocks import Block, ReadCalls, Rules, Schemas, separated
from loire.text.tools.formats import ToolFormat
from loire.text.tools.literals import LiteralReader

_QUOTE = '<|"|>'


def _read(inner: str, schemas: Schemas) -> ReadCalls | None:
    reader = LiteralReader(inner, (_QUOTE,), bare_keys=True)
    try:
        reader.expect("call:")
        name = reader.name()
        arguments = reader.value()
    except (ValueError, RecursionError):
        return None
    known = name in schemas and isinstance(arguments, dict) and reader.at_end
    return [(name, as_json(arguments))] if known else None


def _write(name: str, schema: Mapping[str, Any], rules: Rules) -> str:
    """Arguments in the order of their names, as the template writes them."""
    properties = schema.get("properties")
    head = rules.text(f"call:{name}" + "{")
    if not isinstance(properties, Mapping):
        return f"{head} /[^<]*/ ({rules.text(_QUOTE)} {rules.until(_QUOTE)} /[^<]*/)*"
    pairs = {
        key: f"{rules.text(key + ':')} {_value(property_schema(schema, key), rules)}"
        for key in sorted(properties)
    }
    written = separated(pairs, schema.get("required", ()), '","')
    return f"{head} {written} {rules.text('}')}"


def _value(about: Mapping[str, Any], rules: Rules) -> str:
    quote = rules.text(_QUOTE)
    values = about.get("enum")
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return f"{quote} ({' | '.join(map(rules.text, values))}) {quote}"
    kind = about.get("type", "string")
    if kind in ("integer", "number", "boolean", "null"):
        return rules.json(about)
    if kind == "array":
        items = about.get("items")
        item = _value(items if isinstance(items, Mapping) else {}, rules)
        return f'"[" ({item} ("," {item})*)? "]"'
    if kind == "object":
        properties = about.get("properties")
        pairs = [
            f"({rules.text(key + ':')} {_value(property_schema(about, key), rules)})"
            for key in sorted(properties if isinstance(properties, Mapping) else ())
        ]
        return '"{" ' + ' "," '.join(pairs) + ' "}"'
    return f"{quote} {rules.until(_QUOTE)}"


GEMMA = ToolFormat(
    name="gemma",
    opening="<|tool_call>",
    closing="<tool_call|>",
    before="<|tool_call>",
    between="<tool_call|><|tool_call>",
    after="<tool_call|>",
    block=Block(read=_read, write=_write, tokens=(_QUOTE,)),
)
