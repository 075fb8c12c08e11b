"""Conversations with tools through templates in the manner of the families."""

import json
from typing import Any

import pytest

from loire.base.errors import RequestError
from loire.text.chat_template import ChatTemplate
from loire.text.dialect import Dialect, read_dialect
from loire.text.reasoning import MISTRAL_THINK, THINK
from loire.text.tools.definitions import Tool
from loire.text.tools.formats import GENERIC, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED
from loire.text.tools.prompt import explain_tools, render

QWEN = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
    {{- "Tools:" }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{% endfor %}
    {{- "\nCall one so: <tool_call>{\"name\": ..., \"arguments\": ...}</tool_call><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.reasoning_content is defined and message.reasoning_content %}
            {{- '\n<think>\n' + message.reasoning_content + '\n</think>\n' }}
        {%- endif %}
        {%- if message.content %}{{- '\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '\n<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

LLAMA_3 = r"""{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if tools is not none and messages[0].role != 'system' %}
    {%- set system = 'Environment: ipython' %}
{%- elif messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{% set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}
{%- if tools is not none %}
    {%- if messages | length == 0 %}{{ raise_exception('no first user message') }}{% endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\nAnswer with {"name": function name, ' }}
    {{- '"parameters": dictionary of arguments}.\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=1) }}{% endfor %}
    {{- '\n' + messages[0].content | trim + '<|eot_id|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
        {{- message.content if message.content is string else message.content | tojson }}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

MISTRAL_V3 = r"""
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set rest = messages %}{% endif %}
{%- set ns = namespace(turn=0) %}
{%- for message in rest %}
    {%- if message.role == 'user' or message.role == 'assistant' and not message.tool_calls %}
        {%- if (message.role == 'user') != (ns.turn % 2 == 0) %}
            {{- raise_exception('roles must alternate user/assistant') }}
        {%- endif %}
        {%- set ns.turn = ns.turn + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and message == (rest | selectattr('role', 'equalto', 'user')
                | list)[-1] %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (system + '\n\n' if loop.first and system is defined else '') }}
        {{- message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {{- (call.function | tojson)[:-1] }}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be of length 9!') }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' }}
            {{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}
            {{- raise_exception('Tool call IDs should be of length 9!') }}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string }}
        {{- ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

MISTRAL_2025 = r"""{{- bos_token }}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}
    {%- elif message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}
        {%- if message.reasoning_content %}
            {{- '[THINK]' + message.reasoning_content + '[/THINK]' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}
            {{- call.function.arguments | tojson }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

SMOLLM2 = r"""{% for message in messages %}
{%- if loop.first and messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

GEMMA = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""

ARGUMENTS_AS_TEXT = (
    r"{% for m in messages %}{{ m.role + ': ' + (m.content or '') }}"
    r"{% for c in m.tool_calls or [] %}"
    r"{{ '<tool_call>' + c.function.name + c.function.arguments + '</tool_call>' }}{% endfor %}"
    r"{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
)

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
WEATHER = Tool(
    name="weather",
    description="The weather in a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}},
)


def _call(call_id: str, city: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": json.dumps({"city": city}, ensure_ascii=False)}
    return {"id": call_id, "type": "function", "function": function}


def _result(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "Rain?"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [_call("call_1", "Orléans")]}
TWO_CALLS = {**CALLS, "tool_calls": [_call("call_1", "Orléans"), _call("call_2", "Nevers")]}
RESULT = _result("call_1", "dry")
TWO_RESULTS = [RESULT, _result("call_2", "wet")]


def _dialect(source: str) -> tuple[ChatTemplate, Dialect]:
    template = ChatTemplate(source, SPECIAL)
    return template, read_dialect(source, template.variables)


def _render(source: str, messages: list[Any], tools: list[Tool], **variables: Any) -> str:
    return render(*_dialect(source), messages, tools, variables)


@pytest.mark.parametrize(
    ("source", "tool_format", "reasoning"),
    [
        (QWEN, HERMES, THINK),
        (LLAMA_3, LLAMA, None),
        (MISTRAL_V3, MISTRAL, None),
        (MISTRAL_2025, MISTRAL_NAMED, MISTRAL_THINK),
        (SMOLLM2, GENERIC, None),
        (GEMMA, GENERIC, None),
    ],
)
def test_dialects(source: str, tool_format: Any, reasoning: Any) -> None:
    _, dialect = _dialect(source)
    assert dialect.tool_format is tool_format
    assert dialect.knows_tools == (tool_format is not GENERIC)
    assert dialect.reasoning is reasoning


def test_qwen() -> None:
    thought = {**TWO_CALLS, "content": "Let me see.", "reasoning_content": "Two cities."}
    prompt = _render(QWEN, [SYSTEM, QUESTION, thought, *TWO_RESULTS], [WEATHER])
    assert prompt == (
        "<|im_start|>system\nBe brief.\n\nTools:\n"
        f"{json.dumps(WEATHER.for_template())}\n"
        'Call one so: <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\n'
        "<|im_start|>user\nRain?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nTwo cities.\n</think>\n\nLet me see.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Orléans"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Nevers"}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\ndry\n</tool_response>\n"
        "<tool_response>\nwet\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert _render(QWEN, [QUESTION], [], enable_thinking=False).endswith("</think>\n\n")


def test_llama_calls_one_at_a_time() -> None:
    prompt = _render(LLAMA_3, [SYSTEM, QUESTION, TWO_CALLS, *TWO_RESULTS], [WEATHER])
    head = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
    told = json.dumps(WEATHER.for_template(), indent=1)
    form = 'Answer with {"name": function name, "parameters": dictionary of arguments}.'
    assert prompt == "<s>" + "".join(
        [
            head.format("system", "Be brief."),
            head.format("user", f"{form}\n{told}\nRain?"),
            head.format("assistant", '{"name": "weather", "parameters": {"city": "Orléans"}}'),
            head.format("ipython", "dry"),
            head.format("assistant", '{"name": "weather", "parameters": {"city": "Nevers"}}'),
            head.format("ipython", "wet"),
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ]
    )


def test_llama_with_results_in_another_order_and_one_missing() -> None:
    three = {**TWO_CALLS, "tool_calls": [*TWO_CALLS["tool_calls"], _call("call_3", "Blois")]}
    thanks = {"role": "user", "content": "Thanks."}
    prompt = _render(LLAMA_3, [SYSTEM, QUESTION, three, *reversed(TWO_RESULTS), thanks], [])
    places = [prompt.index(word) for word in ("Nevers", "wet", "Orléans", "dry", "Blois", "Thanks")]
    assert places == sorted(places)


KIMI = """{% for m in messages %}{% for c in m.tool_calls or [] %}<|tool_call_begin|>{{ c.id }}
{%- endfor %}{{ '## ' ~ m.tool_call_id if m.tool_call_id }}{% endfor %}{% if tools %}{% endif %}"""


def test_kimi_gets_ids_that_count_the_calls() -> None:
    def call(call_id: str, name: str) -> dict[str, Any]:
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}

    template = ChatTemplate(KIMI, {})
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [call("a", "f"), call("b", "g")]},
        {"role": "tool", "content": "r", "tool_call_id": "b"},
        {"role": "tool", "content": "r", "tool_call_id": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call("a", "f")]},
        {"role": "tool", "content": "r", "tool_call_id": "a"},
        {"role": "tool", "content": "r", "tool_call_id": "unknown"},
    ]
    text = render(template, read_dialect(KIMI, template.variables), messages)
    template.close()
    ids = [part.strip() for part in text.replace("##", "<|tool_call_begin|>").split(
        "<|tool_call_begin|>")]  # fmt: skip
    assert ids[1:] == [
        "functions.f:0", "functions.g:1", "functions.g:1", "functions.f:0", "functions.f:2",
        "functions.f:2", "unknown",
    ]  # fmt: skip


def test_mistral_gets_ids_that_its_template_takes() -> None:
    prompt = _render(MISTRAL_V3, [SYSTEM, QUESTION, TWO_CALLS, *TWO_RESULTS], [WEATHER])
    begin = f"<s>[AVAILABLE_TOOLS] [{json.dumps(WEATHER.for_template())}][/AVAILABLE_TOOLS]"
    assert prompt.startswith(f"{begin}[INST] Be brief.\n\nRain?[/INST][TOOL_CALLS] [")
    made, results = prompt.split("[TOOL_CALLS] ")[1].split("</s>")
    calls = json.loads(made)
    assert [call["arguments"] for call in calls] == [{"city": "Orléans"}, {"city": "Nevers"}]
    first, second = (call["id"] for call in calls)
    assert first != second
    assert results == (
        f'[TOOL_RESULTS] {{"content": dry, "call_id": "{first}"}}[/TOOL_RESULTS]'
        f'[TOOL_RESULTS] {{"content": wet, "call_id": "{second}"}}[/TOOL_RESULTS]'
    )
    # Its own ids are kept.
    own = {**CALLS, "tool_calls": [_call("aB3dE6gH9", "Tours")]}
    prompt = _render(MISTRAL_V3, [QUESTION, own, _result("aB3dE6gH9", "dry")], [])
    assert prompt.count("aB3dE6gH9") == 2


def test_mistral_of_2025() -> None:
    thought = {**TWO_CALLS, "reasoning_content": "Two cities."}
    prompt = _render(MISTRAL_2025, [SYSTEM, QUESTION, thought, *TWO_RESULTS], [WEATHER])
    assert prompt == (
        f"<s>[AVAILABLE_TOOLS][{json.dumps(WEATHER.for_template())}][/AVAILABLE_TOOLS]"
        "[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Rain?[/INST][THINK]Two cities.[/THINK]"
        '[TOOL_CALLS]weather[ARGS]{"city": "Orléans"}[TOOL_CALLS]weather[ARGS]{"city": "Nevers"}'
        "</s>[TOOL_RESULTS]dry[/TOOL_RESULTS][TOOL_RESULTS]wet[/TOOL_RESULTS]"
    )


def test_a_template_that_knows_no_tools() -> None:
    prompt = _render(SMOLLM2, [SYSTEM, QUESTION, TWO_CALLS, *TWO_RESULTS], [WEATHER])
    assert prompt == (
        f"<|im_start|>system\nBe brief.\n\n{explain_tools([WEATHER])}<|im_end|>\n"
        "<|im_start|>user\nRain?<|im_end|>\n"
        "<|im_start|>assistant\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Orléans"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Nevers"}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\nThe function weather returned this:\ndry\n"
        "The function weather returned this:\nwet\nAnswer my question with it.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # Without a system message the explanation takes the place of the template's own.
    prompt = _render(SMOLLM2, [QUESTION], [WEATHER])
    assert prompt.startswith(f"<|im_start|>system\n{explain_tools([WEATHER])}<|im_end|>\n")
    assert _render(SMOLLM2, [QUESTION], []).startswith("<|im_start|>system\nYou are SmolLM.")


def test_a_template_that_knows_no_system_either() -> None:
    more = {"role": "user", "content": "And now?"}
    prompt = _render(GEMMA, [SYSTEM, QUESTION, CALLS, RESULT, more], [WEATHER])
    assert prompt == (
        f"<s><start_of_turn>user\nBe brief.\n\n{explain_tools([WEATHER])}\n\nRain?<end_of_turn>\n"
        "<start_of_turn>model\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Orléans"}}\n</tool_call>'
        "<end_of_turn>\n"
        "<start_of_turn>user\nThe function weather returned this:\ndry\n\nAnd now?<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_a_template_that_wants_arguments_as_text() -> None:
    prompt = _render(ARGUMENTS_AS_TEXT, [QUESTION, CALLS], [WEATHER])
    assert '<tool_call>weather{"city": "Orléans"}</tool_call>' in prompt


@pytest.mark.parametrize("arguments", ["{", '{"city": "Par', "[]", "1", "[" * 9999])
@pytest.mark.parametrize("source", [QWEN, SMOLLM2])
def test_arguments_that_are_no_object_are_told_as_text(source: str, arguments: str) -> None:
    broken = _call("call_1", "Tours")
    broken["function"] = {"name": "weather", "arguments": arguments}
    message = {"role": "assistant", "content": "", "tool_calls": [_call("call_0", "Tours"), broken]}
    assert json.dumps(arguments)[1:-1] in _render(source, [QUESTION, message], [])


def test_no_arguments() -> None:
    empty = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": ""}}
    message = {"role": "assistant", "content": "", "tool_calls": [empty]}
    assert '{"name": "now", "arguments": {}}' in _render(QWEN, [QUESTION, message], [])


def test_what_a_template_refuses_is_said() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        _render(MISTRAL_V3, [QUESTION, QUESTION], [WEATHER])
    with pytest.raises(RequestError, match="roles must alternate"):
        _render(GEMMA, [QUESTION, QUESTION], [WEATHER])
