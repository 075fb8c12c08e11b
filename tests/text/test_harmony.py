"""gpt-oss's messages in channels: read whatever the pieces, enforced, and written back."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from loire.base.structured_outputs import StructuredOutputs
from loire.text.chat_template import ChatTemplate
from loire.text.dialect import read_dialect
from loire.text.grammar import GrammarCompiler, grammar_threads
from loire.text.reasoning_grammar import Thoughts
from loire.text.tokenizer import Tokenizer as LoireTokenizer
from loire.text.tools.definitions import Tool, ToolUse
from loire.text.tools.events import (
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ReasoningDelta,
)
from loire.text.tools.grammar import CallGrammar
from loire.text.tools.harmony import HARMONY, HARMONY_MARKS, MAX_HEADER, HarmonyParser
from loire.text.tools.prompt import render

Read = tuple[str, str, list[tuple[str, Any]]]
"""Thoughts, content, calls."""

CALL = ("river_level", {"station": "Tours <nord>"})
RECORDED: list[tuple[str, Read]] = [
    ("<|channel|>final<|message|>Calm water.", ("", "Calm water.", [])),
    ("<|channel|>analysis<|message|>Is it\nhigh?<|end|><|start|>assistant<|channel|>final"
     "<|message|>No. a < b <| c<|return|>", ("Is it\nhigh?", "No. a < b <| c", [])),
    ("<|channel|>analysis<|message|>I must look.<|end|><|start|>assistant<|channel|>commentary "
     'to=functions.river_level <|constrain|>json<|message|>{"station": "Tours <nord>"}<|call|>',
     ("I must look.", "", [CALL])),
    ('<|channel|>commentary to=functions.river_level <|constrain|>json<|message|>'
     '{"station": "Tours <nord>"}', ("", "", [CALL])),
    (' to=functions.river_level<|channel|>commentary json<|message|>{"station": "Tours <nord>"}',
     ("", "", [CALL])),
    ("<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant to=functions.list-boats"
     "<|channel|>commentary<|message|><|call|>", ("", "I will look.", [("list-boats", {})])),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"
     "<|start|>assistant<|channel|>final<|message|>c", ("ab", "c", [])),
    ("Plain words, and no header.", ("", "Plain words, and no header.", [])),
    ("to", ("", "to", [])),
]  # fmt: skip


def read(pieces: list[str], *, truncated: bool = False, **more: Any) -> Read:
    parser = HarmonyParser(frozenset({"river_level", "list-boats"}), new_id=lambda: "id", **more)
    events = [event for piece in pieces for event in parser.push(piece)]
    events += parser.finish(truncated=truncated)
    ended = [event.index for event in events if isinstance(event, CallEnded)]
    assert parser.num_calls == len(ended)
    thoughts = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    names = {event.index: event.name for event in events if isinstance(event, CallStarted)}
    texts = dict.fromkeys(names, "")
    for event in events:
        if isinstance(event, ArgumentsDelta):
            texts[event.index] += event.text
    calls = [(names[index], json.loads(texts[index])) for index in ended]
    return thoughts, content, calls


@pytest.mark.parametrize(("text", "expected"), RECORDED)
def test_recorded_texts_at_every_split(text: str, expected: Read) -> None:
    assert read([text]) == read(list(text)) == expected
    for place in range(1, len(text)):
        assert read([text[:place], text[place:]]) == expected, place


def test_thoughts_and_content_stream() -> None:
    parser = HarmonyParser(frozenset(), new_id=lambda: "id")
    assert parser.push("<|channel|>analysis<|message|>I thi") == [ReasoningDelta("I thi")]
    assert parser.push("nk<|en") == [ReasoningDelta("nk")]
    assert parser.push("d|><|start|>assistant<|channel|>final<|message|>So") == [ContentDelta("So")]
    assert parser.push(" be it <") == [ContentDelta(" be it ")]
    assert parser.finish(truncated=False) == [ContentDelta("<")]


HEADER = "<|channel|>commentary to=functions.river_level <|constrain|>json<|message|>"


def test_a_call_streams() -> None:
    parser = HarmonyParser(frozenset({"river_level"}), new_id=lambda: "id")
    assert parser.push(HEADER + " ") == []
    assert parser.push('{"sta') == [CallStarted(0, "id", "river_level"), ArgumentsDelta(0, '{"sta')]
    assert parser.in_call
    assert parser.push('tion": "a<') == [ArgumentsDelta(0, 'tion": "a')]
    assert parser.push('b"') == [ArgumentsDelta(0, '<b"')]
    assert parser.push("} ") == [ArgumentsDelta(0, "}"), CallEnded(0)]
    assert not parser.in_call
    assert parser.push("\n<|call|>") == parser.finish(truncated=False) == []


def test_a_call_that_breaks_after_it_was_told_is_revoked() -> None:
    parser = HarmonyParser(frozenset({"river_level"}), new_id=lambda: "id")
    parser.push(HEADER + '{"station": ')
    events = parser.push(f"no <|end|><|start|>assistant{HEADER}{{}}<|call|>")
    said = ContentDelta(HEADER + '{"station": no ')
    second = [CallStarted(1, "id", "river_level"), ArgumentsDelta(1, "{}"), CallEnded(1)]
    assert events == [ArgumentsDelta(0, "n"), CallBroken(0), said, *second]


def test_what_follows_the_arguments_is_content() -> None:
    text = HEADER + "{} is it<|end|><|start|>assistant<|channel|>final<|message|>."
    assert read([text]) == read(list(text)) == ("", "is it.", [("river_level", {})])


def test_what_is_no_call_is_content_to_the_letter() -> None:
    head = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>"
    for name, arguments in (("other", "{}"), ("river_level", "[1]"), ("river_level", '{"a": ')):
        text = head.format(name) + arguments
        for pieces in ([text + "<|call|>"], list(text), [text, "<|end|>"]):
            assert read(pieces) == ("", text, [])
    assert read([head.format("list-boats") + "{}"], max_calls=0)[2] == []


def test_a_call_that_was_cut_off_stays_open() -> None:
    text = '<|channel|>commentary to=functions.river_level<|message|>{"station": "To'
    for end in range(len(text)):
        parser = HarmonyParser(frozenset({"river_level"}), new_id=lambda: "id")
        parser.push(text[:end])
        assert parser.in_call == ("{" in text[:end])
        rest = parser.finish(truncated=True)
        assert [event for event in rest if not isinstance(event, ContentDelta)] == []
        assert parser.num_calls == 0


def test_an_endless_header_is_content() -> None:
    text = "<|channel|>" + "x" * 3 * MAX_HEADER
    assert read(list(text))[1] == text


def test_a_message_goes_on_within_its_channel() -> None:
    assert read(list("and more<|return|>"), within="content") == ("", "and more", [])


TEMPLATE = """
{%- for m in messages -%}
{%- if m.role == 'assistant' and m.tool_calls -%}
{%- if m.content and m.thinking -%}{{ raise_exception('both') }}{%- endif -%}
{%- if m.content or m.thinking -%}
<|start|>assistant<|channel|>analysis<|message|>{{ m.content or m.thinking }}<|end|>
{%- endif -%}
{%- set call = m.tool_calls[0].function -%}
<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>
{{- call.arguments | tojson }}<|call|>
{%- elif m.role == 'assistant' -%}
<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>
{%- else -%}
<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
{%- if tools and reasoning_effort == 'never' -%}{%- endif -%}
"""


def test_the_template_is_known_and_past_calls_are_written_as_it_wants_them() -> None:
    template = ChatTemplate(TEMPLATE, {})
    dialect = read_dialect(template.source, template.variables)
    assert dialect.tool_format is HARMONY
    assert dialect.has_channels
    calls = [
        {"id": str(n), "type": "function", "function": {"name": f"f{n}", "arguments": "{}"}}
        for n in range(2)
    ]
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "said", "reasoning_content": "thought",
         "tool_calls": calls[:1]},
        {"role": "tool", "content": "r", "tool_call_id": "0"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "r1", "tool_call_id": "1"},
    ]  # fmt: skip
    text = render(template, dialect, messages, [Tool(name="f0")])
    assert "analysis<|message|>thought\n\nsaid<|end|>" in text
    assert text.count("to=functions.f0") == 2
    assert (
        text.endswith("to=functions.f0<|channel|>commentary json<|message|>{}<|call|>")
        or "to=functions.f1<|channel|>commentary json<|message|>{}<|call|><|start|>tool" in text
    )
    template.close()


def _tokenizer() -> LoireTokenizer:
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = Tokenizer(models.BPE({char: i for i, char in enumerate(characters)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    marks = ["<|eos|>", *HARMONY_MARKS.tokens]
    rust.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    eos, call = rust.token_to_id("<|eos|>"), rust.token_to_id("<|call|>")
    assert eos is not None
    assert call is not None
    return LoireTokenizer(rust, eos_token_ids=(eos, call))


TOKENIZER = _tokenizer()
COMPILER = GrammarCompiler(TOKENIZER)
THOUGHTS = Thoughts(HARMONY_MARKS, "may", TOKENIZER.id_of)


def accepts(spec: StructuredOutputs, text: str) -> bool:
    with grammar_threads(1) as threads:
        matcher = threads.submit(COMPILER.matcher, spec).result()
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    return matcher.consume_tokens(tokens) and matcher.is_accepting()


LEVEL = Tool(
    name="river_level",
    parameters={
        "type": "object",
        "properties": {"days": {"type": "integer"}},
        "required": ["days"],
        "additionalProperties": False,
    },
)
THOUGHT = "<|channel|>analysis<|message|>Well\n<|end|><|start|>assistant"
GOOD = '<|channel|>commentary to=functions.river_level <|constrain|>json<|message|>{"days": 3}'
FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize("before", ["", THOUGHT])
def test_calls_and_forms_are_enforced_in_their_channels(before: str) -> None:
    required = CallGrammar(HARMONY, THOUGHTS).write(ToolUse(tools=[LEVEL], mode="required"))
    spec = StructuredOutputs(grammar=required)
    assert accepts(spec, before + GOOD)
    assert not accepts(spec, before + GOOD.replace("3", "x"))
    assert not accepts(spec, before + FINAL + "No.")
    free = CallGrammar(HARMONY, THOUGHTS).write(ToolUse(tools=[LEVEL], max_calls=1))
    spec = StructuredOutputs(grammar=free)
    assert accepts(spec, before + GOOD)
    assert accepts(spec, before + FINAL + "No.")
    form = THOUGHTS.before(StructuredOutputs(choice=("yes", "no")))
    assert accepts(form, before + FINAL + "yes")
    assert not accepts(form, before + FINAL + "maybe")
    assert not accepts(form, "yes")
