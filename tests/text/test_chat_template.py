"""Templates render as transformers renders them; test_hostile_templates.py has those that harm."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from loire.base.errors import CheckpointError, RequestError
from loire.text.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {
    "chatml": """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'
        + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "llama 2": """{% if messages[0]['role'] == 'system' %}
  {% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}
  {% set rest = messages[1:] %}
{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{% for m in rest %}
  {%- if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '')
    + m.content | trim + ' [/INST]' }}
  {%- else %}{{ ' ' ~ m.content ~ ' ' ~ eos_token }}{% endif %}
{%- endfor %}""",
    "roles by name": """{{ bos_token }}{% for m in messages %}
{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{% if loop.index0 % 2 == 1 and role == 'user' %}{% continue %}{% endif %}
<turn>{{ role }}
{{ m['content'] | upper }}</turn>
{% endfor %}{% if add_generation_prompt %}<turn>model{% endif %}""",
    "namespace and tools": """{% set ns = namespace(found=false, n=0) %}
{% for m in messages %}{% if m.role == 'system' %}{% set ns.found = true %}{% endif %}
{% set ns.n = ns.n + 1 %}{% endfor %}
{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}
{{ ns.found }} {{ ns.n }} {{ messages[-1].content.split(' ') | join('_') }}
{% macro end(x) %}<{{ x }}>{% endmacro %}{{ end(eos_token) }}
{% if thinking is defined and thinking %}<think>{% endif %}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}
{% endfor %}""",
}
CONVERSATION = [
    {"role": "system", "content": "Answer <briefly> & well."},
    {"role": "user", "content": "  Bonjour, où est la Loire?  "},
    {"role": "assistant", "content": "À Nantes."},
    {"role": "user", "content": "Merci 🙂"},
]
TOOLS = [{"type": "function", "function": {"name": "höhe", "parameters": {"type": "object"}}}]

TOOL_TEMPLATES = {
    "macros that describe types, as Hermes 3": r"""
{%- macro kind(spec) %}
  {%- set names = {"string": "str", "integer": "int", "number": "float"} %}
  {%- if spec.type is defined and spec.type == "array" %}{{- "list[" + kind(spec["items"]) + "]" }}
  {%- elif spec.type is defined and spec.type is iterable and spec.type is not string %}
    {{- "Union[" }}{% for one in spec.type %}{{- kind({"type": one}) }}
    {%- if not loop.last %}{{- "," }}{% endif %}{% endfor %}{{- "]" }}
  {%- else %}{{- names[spec.type] | default("Any") }}{% endif %}
{%- endmacro %}
{{- bos_token }}<tools>
{%- for tool in tools or [] %}
  {%- if tool.function is defined %}{% set tool = tool.function %}{% endif %}
  {{- '{"name": "' ~ tool.name ~ '", "description": "' ~ tool.name + "(" }}
  {%- for name, spec in tool.parameters.properties | items %}
    {{- name + ": " + kind(spec) }}{% if not loop.last %}{{- ", " }}{% endif %}
  {%- endfor %}{{- ")" }}
  {%- for name, spec in tool.parameters.properties.items() if spec.description is defined %}
    {{- "\n    " + name + ": " + spec.description | trim }}
  {%- endfor %}{{- '", "parameters": ' + tool.parameters | tojson }}
{%- endfor %}</tools>
{%- for message in messages %}
  {%- if message.role == "assistant" and message.tool_calls is defined %}
    {%- for call in message.tool_calls %}{{- '<tool_call>' }}
      {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
      {{- '{"arguments": ' }}{{- call.arguments | tojson }}{{- ', "name": "' }}{{- call.name }}
      {{- '"}</tool_call>' }}
    {%- endfor %}
  {%- else %}{{- message.role + ": " + message.content }}{% endif %}
{%- endfor %}""",
    "thoughts of the last turn, as Qwen 3": r"""
{%- set ns = namespace(multi_step_tool=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
  {%- set index = (messages | length - 1) - loop.index0 %}
  {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not (
      message.content.startswith('<tool_response>') and message.content.endswith('</x>')) %}
    {%- set ns.multi_step_tool = false %}{%- set ns.last = index %}
  {%- endif %}
{%- endfor %}
{%- for message in messages %}
  {%- set content = message.content if message.content is string else '' %}
  {%- set thought = '' %}
  {%- if message.reasoning_content is string %}{% set thought = message.reasoning_content %}
  {%- elif '</think>' in content %}
    {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
    {%- set content = content.split('</think>')[-1].lstrip('\n') %}
  {%- endif %}
  {%- if loop.index0 > ns.last and (loop.last or thought) %}
    {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
  {%- else %}{{- message.role + '\n' + content }}{% endif %}
  {%- for call in message.tool_calls or [] %}
    {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{% endif %}
    {{- call.function.name }}
    {{- call.function.arguments if call.function.arguments is string
        else call.function.arguments | tojson }}
  {%- endfor %}
{%- endfor %}""",
}
TOOL_CONVERSATION = [
    *CONVERSATION[:2],
    {"role": "assistant", "content": "<think>\nA river.\n</think>\n\nÀ Nantes."},
    {"role": "user", "content": "And how high?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I do not know.",
        "tool_calls": [
            {"id": "1", "type": "function",
             "function": {"name": "höhe", "arguments": {"place": "Orléans", "hours": [1, 2]}}},
            {"id": "2", "type": "function",
             "function": {"name": "höhe", "arguments": {"place": "<Tours>"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "1.20"},
    {"role": "tool", "tool_call_id": "2", "content": "0.80"},
]  # fmt: skip
TYPED_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "höhe",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": " where & when "},
                    "hours": {"type": "array", "items": {"type": ["integer", "number"]}},
                },
            },
        },
    }
]


@pytest.mark.parametrize("name", TOOL_TEMPLATES)
@pytest.mark.parametrize("tools", [None, TYPED_TOOLS])
def test_equals_transformers_with_tools(name: str, tools: Any) -> None:
    source = TOOL_TEMPLATES[name]
    expected = _reference().apply_chat_template(
        TOOL_CONVERSATION, chat_template=source, tokenize=False, tools=tools
    )
    template = ChatTemplate(source, SPECIAL)
    found = template.render(TOOL_CONVERSATION, add_generation_prompt=False, tools=tools)
    assert found == expected
    assert "Orléans" in found


def _reference() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generate", [True, False])
def test_equals_transformers(name: str, generate: bool) -> None:
    source = TEMPLATES[name]
    reference = _reference()
    for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2]):
        for variables in ({}, {"tools": TOOLS}, {"thinking": True}):
            expected = reference.apply_chat_template(
                messages,
                chat_template=source,
                tokenize=False,
                add_generation_prompt=generate,
                **variables,
            )
            found = ChatTemplate(source, SPECIAL).render(
                messages, add_generation_prompt=generate, **variables
            )
            assert found == expected


FEATURES = {
    "tojson with all of its arguments": """{{ tools | tojson(indent=4, sort_keys=true) }}
{{ tools | tojson(separators=(',', ':'), ensure_ascii=true) }}{{ '<é>' | tojson }}""",
    "filters on generators": """{{ messages | map(attribute='content') | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}
{{ messages | rejectattr('role', 'in', ['user']) | list | length }}
{{ messages | map(attribute='role') | unique | join('-') }}""",
    "loop controls": """{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}
{% if loop.index == 4 %}{% break %}{% endif %}{{ m.role }}{{ loop.cycle('a', 'b') }}{% endfor %}""",
    "text formatting": """{{ '%s is %d, %05.1f' % ('x', 3, 2.5) }}{{ '%s!' | format('y') }}
{{ 'a {} {b}'.format(1, b=2) }}{{ 'x' | center(5) }}{{ 'abc'.center(9, '*') }}
{{ messages[1].content | indent(4, true) }}{{ messages | pprint | length > 3 }}""",
    "dates": "{{ strftime_now('%Y') | int > 2000 }}{% set x = strftime_now('%d %b %Y') %}",
    "dict and namespace": """{% set d = dict(a=1, b=[1]) %}{% set ns = namespace(x=d, self=3) %}
{% set ns.y = ns.x.b + [2] %}{{ ns.y }}{{ d | items | list }}{{ ns.self }}""",
    "a scope in a generation": """{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}
{% endgeneration %}{{ x }}{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}
{% endgeneration %}{% endfor %}""",
    "texts": """{{ 'a b'.split()[-1].rstrip('b') }}{{ 'ab'.title() }}
{{ messages[-1]['content'][2:] }}{{ messages[::-1][0].content | capitalize | replace('i', 'o') }}
{{ 1.0 }}{{ none }}{{ true }}
{{ [1, 'a', none, {'b': 1.5}] }}{{ 'x' is string }}{{ {} is mapping }}""",
}


@pytest.mark.parametrize("name", FEATURES)
def test_what_transformers_gives_templates(name: str) -> None:
    source = FEATURES[name]
    reference = _reference()
    expected = reference.apply_chat_template(
        CONVERSATION, chat_template=source, tokenize=False, tools=TYPED_TOOLS
    )
    template = ChatTemplate(source, SPECIAL)
    assert template.render(CONVERSATION, add_generation_prompt=False, tools=TYPED_TOOLS) == expected


PARTS = {
    "parts alone": "{% for m in messages %}{{ m.role }}: {% for part in m['content'] %}"
    "{{ part['text'] }}{% endfor %}\n{% endfor %}",
    "either": "{% macro write(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content %}{% if part.type == 'text' %}<{{ part.text | trim }}>{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ m.role }}: {{ write(m.content) }}\n{% endfor %}",
    "parts of the user": "{% for m in messages %}{% if m.role == 'user' %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}",
}


@pytest.mark.parametrize("name", PARTS)
def test_templates_that_read_parts_get_them(name: str) -> None:
    source = PARTS[name]
    parts = [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]
    conversation: list[Any] = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "x" if name == "parts of the user" else parts},
    ]
    expected = _reference().apply_chat_template(conversation, chat_template=source, tokenize=False)
    template = ChatTemplate(source, SPECIAL)
    assert template.render(conversation, add_generation_prompt=False) == expected
    # A text reaches them as well, whatever they read.
    said = template.render([{"role": "user", "content": "hello"}], add_generation_prompt=False)
    assert "hello" in said


def test_a_template_that_reads_text_gets_text() -> None:
    template = ChatTemplate(TEMPLATES["chatml"], SPECIAL)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "user\nab<|im_end|>" in template.render([{"role": "user", "content": parts}])


def test_templates_by_name() -> None:
    sources = {
        "default": "D{{ style }}",
        "tool_use": "T{{ tools | length }}",
        "rag": "R{{ documents }}",
    }
    template = ChatTemplate(sources, SPECIAL)
    assert template.render(CONVERSATION, style=1) == "D1"
    assert template.render(CONVERSATION, tools=TOOLS) == "T1"
    assert template.render(CONVERSATION, documents=["d"]) == "R['d']"
    assert {"style", "tools", "documents"} <= template.variables
    assert ChatTemplate({"only": "O"}, {}).render(CONVERSATION) == "O"


def test_reasoning_by_any_of_its_names_and_nulls() -> None:
    source = (
        "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.name }}{% endfor %}"
    )
    messages = [
        {"role": "assistant", "content": "x", name: "thought", "name": None}
        for name in ("reasoning_content", "thinking", "reasoning")
    ]
    expected = _reference().apply_chat_template(messages, chat_template=source, tokenize=False)
    found = ChatTemplate(source, SPECIAL).render(messages, add_generation_prompt=False)
    assert found == expected == "thoughtthought" * 3


@pytest.mark.parametrize("content", ["Once upon a", "Once upon a "])
@pytest.mark.parametrize("name", ["chatml", "llama 2", "roles by name"])
def test_a_message_is_continued(name: str, content: str) -> None:
    source = TEMPLATES[name].replace(" | upper", "")
    messages = [*CONVERSATION[1:2], {"role": "assistant", "content": content}]
    expected = _reference().apply_chat_template(
        messages, chat_template=source, tokenize=False, continue_final_message=True
    )
    found = ChatTemplate(source, SPECIAL).render(messages, continue_final_message=True)
    assert found == expected


def test_what_cannot_be_continued_is_said() -> None:
    template = ChatTemplate("{{ messages[-1].content | length }}", {})
    with pytest.raises(RequestError, match="does not write the last message's text as it is"):
        template.render(CONVERSATION, continue_final_message=True)
    with pytest.raises(RequestError, match="needs a last message with text"):
        template.render([{"role": "user", "content": None}], continue_final_message=True)


def test_values_that_are_no_json_are_refused() -> None:
    template = ChatTemplate("{{ x }}", {})
    with pytest.raises(RequestError, match="no JSON"):
        template.render(CONVERSATION, x=object())
    assert template.render(CONVERSATION, x=2**70) == str(2**70)
    assert template.render(CONVERSATION, x="\ud800") == "\ud800"


def test_parts_of_text_are_joined_and_others_refused() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    parts: list[Any] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}]) == "ab"
    parts.append({"type": "image_url", "image_url": {"url": "http://x/y.png"}})
    with pytest.raises(RequestError, match="'image_url', but this model reads text only"):
        template.render([{"role": "user", "content": parts}])
    with pytest.raises(RequestError, match="has no role"):
        template.render([{"content": "x"}])
    with pytest.raises(RequestError, match="messages is empty"):
        template.render([])


def test_what_the_template_says_is_passed_on() -> None:
    template = ChatTemplate("{{ raise_exception('System role not supported') }}", {})
    with pytest.raises(RequestError, match=r"does not accept .*: System role not supported"):
        template.render(CONVERSATION)


def test_a_broken_template_is_a_broken_model() -> None:
    with pytest.raises(CheckpointError, match="line 2"):
        ChatTemplate("{% if x %}\n{% endfor %}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | attr('__class__') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.__len__ }}",
    ],
)
def test_python_is_out_of_reach(source: str) -> None:
    assert ChatTemplate(source, {}).render(CONVERSATION) == ""


def test_ordinary_methods_and_filters_work() -> None:
    source = (
        "{{ 'a-b'.replace('-', '+') }} {{ ['x', 'y'] | join(', ') }} {{ ', '.join(['x', 'y']) }} "
        "{{ 'x\ny' | indent(2) }} {{ '7'.zfill(3) }} {{ 'a' + 'b' ~ 1 }} {{ 3 * 4 + 2 ** 5 % 7 }} "
        "{{ [1, 2, 3, 4] | batch(2) | list }} {{ '{:>3}'.format(7) }} "
        "{{ 'abc' | replace('b', '') }}"
    )
    expected = "a+b x, y x, y x\n  y 007 ab1 16 [[1, 2], [3, 4]]   7 ac"
    assert ChatTemplate(source, {}).render(CONVERSATION) == expected


def test_the_files_of_the_server_are_out_of_reach(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with pytest.raises(RequestError):
        ChatTemplate(f"{{% include '{secret}' %}}", {}).render(CONVERSATION)
