"""DeepSeek V3.1 and Kimi K2: a name and JSON, each call and all of them between special tokens.

https://huggingface.co/deepseek-ai/DeepSeek-V3.1 (README, ToolCall)
https://huggingface.co/moonshotai/Kimi-K2-Instruct (docs/tool_call_guidance.md)
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from loire.text.tools.blocks import Block, ReadCalls, Rules, Schemas
from loire.text.tools.formats import ToolFormat

_SEPARATOR = "<｜tool▁sep｜>"
_ARGUMENT = "<|tool_call_argument_begin|>"
_KIMI_NAME = re.compile(r"\s*(?:functions\.)?([\w.-]+?)(?::\d+)?\s*")


def _read(name: str, arguments: str, schemas: Schemas) -> ReadCalls | None:
    try:
        value = json.loads(arguments.strip() or "{}")
    except (ValueError, RecursionError):
        return None
    return (
        [(name, arguments.strip() or "{}")] if isinstance(value, dict) and name in schemas else None
    )


def _read_deepseek(inner: str, schemas: Schemas) -> ReadCalls | None:
    name, found, arguments = inner.partition(_SEPARATOR)
    if name.strip() == "function":  # as R1 and V3 write it: the name, then JSON in a fence
        name, _, arguments = arguments.partition("\n")
        arguments = arguments.strip().removeprefix("```json").removesuffix("```")
    return _read(name.strip(), arguments, schemas) if found else None


def _read_kimi(inner: str, schemas: Schemas) -> ReadCalls | None:
    head, found, arguments = inner.partition(_ARGUMENT)
    name = _KIMI_NAME.fullmatch(head)
    return _read(name[1], arguments, schemas) if found and name else None


def _write_deepseek(name: str, schema: Mapping[str, Any], rules: Rules) -> str:
    return f"{rules.text(name + _SEPARATOR)} {rules.json(schema)}"


def _write_kimi(name: str, schema: Mapping[str, Any], rules: Rules) -> str:
    head = f"{rules.text(f'functions.{name}:')} /[0-9]{{1,3}}/ {rules.text(_ARGUMENT)}"
    return f"{head} {rules.json(schema)}"


DEEPSEEK = ToolFormat(
    name="deepseek",
    opening="<｜tool▁call▁begin｜>",
    closing="<｜tool▁call▁end｜>",
    before="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
    between="<｜tool▁call▁end｜><｜tool▁call▁begin｜>",
    after="<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    block=Block(
        read=_read_deepseek,
        write=_write_deepseek,
        tokens=(_SEPARATOR,),
        around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
)

KIMI = ToolFormat(
    name="kimi",
    opening="<|tool_call_begin|>",
    closing="<|tool_call_end|>",
    before="<|tool_calls_section_begin|><|tool_call_begin|>",
    between="<|tool_call_end|><|tool_call_begin|>",
    after="<|tool_call_end|><|tool_calls_section_end|>",
    block=Block(
        read=_read_kimi,
        write=_write_kimi,
        tokens=(_ARGUMENT,),
        around=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
)
