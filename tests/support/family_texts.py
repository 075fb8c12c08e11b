"""One call of one tool as each family of models writes it, and templates that tell the family.

The templates are our own: they have the marks that a family is known by.
"""

import json
import shutil
from pathlib import Path

ARGUMENTS = {"station": "Tours & <nord>", "days": 3}
_JSON = json.dumps(ARGUMENTS)
_HERMES = f'<tool_call>\n{{"name": "level", "arguments": {_JSON}}}\n</tool_call>'
_TAGGED = "<parameter=station>\nTours & <nord>\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
_DSML = (
    '<｜DSML｜parameter name="station" string="true">Tours & <nord></｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
)
FAMILIES: dict[str, tuple[str, str]] = {
    "hermes": ("<tool_call>", _HERMES),
    "generic": ("", _HERMES),
    "llama": ('"parameters": <|python_tag|>', f'{{"name": "level", "parameters": {_JSON}}}'),
    "mistral": ("[TOOL_CALLS]", f'[TOOL_CALLS] [{{"name": "level", "arguments": {_JSON}}}]'),
    "mistral named": ("[TOOL_CALLS][ARGS]", f"[TOOL_CALLS]level[ARGS]{_JSON}"),
    "qwen coder": ("<tool_call><function=x>",
                   f"<tool_call>\n<function=level>\n{_TAGGED}</function>\n</tool_call>"),
    "glm": ("<tool_call><arg_key>",
            "<tool_call>level\n<arg_key>station</arg_key>\n<arg_value>Tours & <nord></arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"),
    "minimax": ("<minimax:tool_call>",
                '<minimax:tool_call>\n<invoke name="level">\n<parameter name="station">Tours & '
                '<nord></parameter>\n<parameter name="days">3</parameter>\n</invoke>\n'
                "</minimax:tool_call>"),
    "deepseek": ("<｜tool▁call▁begin｜>",
                 f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>level<｜tool▁sep｜>{_JSON}"
                 "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
    "dsml": ("<｜DSML｜function_calls>",
             f'<｜DSML｜function_calls>\n<｜DSML｜invoke name="level">\n{_DSML}</｜DSML｜invoke>\n'
             "</｜DSML｜function_calls>"),
    "kimi": ("<|tool_call_begin|>",
             "<|tool_calls_section_begin|><|tool_call_begin|>functions.level:0"
             f"<|tool_call_argument_begin|>{_JSON}<|tool_call_end|><|tool_calls_section_end|>"),
    "lfm2": ("<|tool_call_start|>",
             '<|tool_call_start|>[level(station="Tours & <nord>", days=3)]<|tool_call_end|>'),
    "llama pythonic": ("<|python_start|>", '[level(station="Tours & <nord>", days=3)]'),
    "gemma": ("<|tool_call><tool_call|>",
              '<|tool_call>call:level{days:3,station:<|"|>Tours & <nord><|"|>}<tool_call|>'),
    "nemotron": ("<TOOLCALL>", f'<TOOLCALL>[{{"name": "level", "arguments": {_JSON}}}]</TOOLCALL>'),
    "granite": ("<|tool_call|>", f'<|tool_call|>[{{"name": "level", "arguments": {_JSON}}}]'),
    "phi": ("<|tool_call|><|/tool_call|>",
            f'<|tool_call|>[{{"name": "level", "arguments": {_JSON}}}]<|/tool_call|>'),
    "harmony": ("<|channel|>final<|message|>",
                "<|channel|>commentary to=functions.level <|constrain|>json<|message|>" + _JSON),
}  # fmt: skip
ANSWER = {"harmony": "<|channel|>final<|message|>It is high."}
"""Of families that write answers in a form of their own."""

_TEMPLATE = """
{%- for m in messages %}<{{ m.role }}>{{ m.content }}
{%- for call in m.tool_calls or [] %}[{{ call.id }} {{ call.function.name }}
{{- call.function.arguments | tojson }}]{% endfor %}{{ m.tool_call_id or '' }}{% endfor -%}
{%- if tools and nothing_of_this %}MARKS{% endif %}<assistant>"""
PARAMETERS = {
    "type": "object",
    "properties": {"station": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["station"],
}


def with_family(model: Path, target: Path, family: str) -> Path:
    """A copy of a model whose template has the family's marks."""
    shutil.copytree(model, target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    config["chat_template"] = _TEMPLATE.replace("MARKS", FAMILIES[family][0])
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target
