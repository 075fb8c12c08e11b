"""LFM2 and Llama 4: a list of calls as Python writes them, [name(key="value")].

https://huggingface.co/LiquidAI/LFM2-1.2B (Tool Use)
https://www.llama.com/docs/model-cards-and-prompt-formats/llama4/ (Zero-shot function calling)
"""

import json
from collections.abc import Mapping
from typing import Any

from loire.text.tools.argument_types import as_json, property_schema
from loire.text.tools.blocks import Block, ReadCalls, Rules, Schemas, separated
from loire.text.tools.formats import ToolFormat
from loire.text.tools.literals import LiteralReader

_DEFINITIONS = ("$defs", "definitions")


def _read(inner: str, schemas: Schemas) -> ReadCalls | None:
    try:
        return _read_objects(inner, schemas) if "{" in inner[:3] else _read_calls(inner, schemas)
    except (ValueError, RecursionError):
        return None


def _read_objects(inner: str, schemas: Schemas) -> ReadCalls | None:
    """LFM2 is also taught a list of JSON objects."""
    value = json.loads(inner)
    calls = value if isinstance(value, list) else [value]
    read = []
    for call in calls:
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if not isinstance(arguments, dict) or call.get("name") not in schemas:
            return None
        read.append((call["name"], as_json(arguments)))
    return read


def _read_calls(inner: str, schemas: Schemas) -> ReadCalls | None:
    reader = LiteralReader(inner)
    listed = reader.take("[")
    calls: list[tuple[str, str]] = []
    while not (listed and reader.take("]")) and not reader.at_end:
        if calls and not reader.take(",") and not reader.take(";"):
            return None
        name = reader.name()
        if name not in schemas:
            return None
        reader.expect("(")
        arguments: dict[str, Any] = {}
        while not reader.take(")"):
            if arguments:
                reader.expect(",")
            key = reader.name()
            reader.expect("=")
            arguments[key] = reader.value()
        calls.append((name, as_json(arguments)))
    return calls if reader.at_end else None


def _write(name: str, schema: Mapping[str, Any], rules: Rules) -> str:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        pair = f'/[A-Za-z_][A-Za-z0-9_]*=/ ("True" | "False" | "None" | {rules.json({})})'
        return f'{rules.text(name + "(")} ({pair} (", " {pair})*)? ")"'
    pairs = {key: _pair(key, schema, rules) for key in properties}
    written = separated(pairs, schema.get("required", ()), '", "')
    return f'{rules.text(name + "(")} {written} ")"'


def _pair(key: str, schema: Mapping[str, Any], rules: Rules) -> str:
    about = property_schema(schema, key)
    kind = about.get("type")
    if kind == "boolean":
        value = '("True" | "False")'
    elif kind == "null":
        value = '"None"'
    else:
        whole = {**about, **{name: schema[name] for name in _DEFINITIONS if name in schema}}
        value = rules.json(whole)
    return f"{rules.text(key + '=')} {value}"


LFM2 = ToolFormat(
    name="lfm2",
    opening="<|tool_call_start|>",
    closing="<|tool_call_end|>",
    before="<|tool_call_start|>[",
    between=", ",
    after="]<|tool_call_end|>",
    block=Block(read=_read, write=_write),
)

LLAMA_PYTHONIC = ToolFormat(
    name="llama pythonic",
    opening="<|python_start|>",
    closing="<|python_end|>",
    bare=True,
    before="[",
    between=", ",
    after="]",
    block=Block(read=_read, write=_write),
)
