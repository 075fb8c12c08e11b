"""Whatever a grammar of calls admits is read back as valid calls; what models write is admitted.

Answers are written by chance: at each position any token that the grammar allows.
"""

import json
import random
from functools import cache
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from loire.base.structured_outputs import StructuredOutputs
from loire.text.answer_parser import AnswerParser
from loire.text.grammar import GrammarCompiler
from loire.text.reasoning import MISTRAL_THINK, THINK, ReasoningMarks, ReasoningSplitter
from loire.text.reasoning_grammar import Thinking, Thoughts
from loire.text.tokenizer import Tokenizer
from loire.text.tools.definitions import MAX_CALLS, Tool, ToolUse
from loire.text.tools.events import ArgumentsDelta, CallStarted, ContentDelta, ReasoningDelta
from loire.text.tools.formats import GENERIC, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, ToolFormat
from loire.text.tools.grammar import CallGrammar
from loire.text.tools.parser import ToolParser

FORMATS = {form.name: form for form in (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, GENERIC)}
EOS = "<end>"
MARKS = ("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]",
         "<think>", "</think>", "[THINK]", "[/THINK]")  # fmt: skip
WEATHER = Tool(
    name="get_weather",
    strict=True,
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 4},
            "days": {"type": "integer", "minimum": 0, "maximum": 12},
            "unit": {"enum": ["C", "F", None]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
)
ADD = Tool(
    name="math.add-up",
    parameters={
        "type": "object",
        "properties": {
            "terms": {
                "type": "array",
                "items": {"$ref": "#/$defs/term"},
                "minItems": 1,
                "maxItems": 2,
            }
        },
        "required": ["terms"],
        "$defs": {"term": {"anyOf": [{"type": "boolean"}, {"const": 'a "quoted" {term}'}]}},
    },
)
NOW = Tool(name="now")
TOOLS = {tool.name: tool for tool in (WEATHER, ADD, NOW)}
KINDS = ("text", "added", "special")
MAX_TOKENS = 700


@cache
def tokenizer(kind: str) -> Tokenizer:
    """A token per byte, and the marks: special tokens, added ones (Qwen's), or bytes as well."""
    names = (EOS,) if kind == "text" else (EOS, *MARKS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*names, *alphabet])}
    rust = RustTokenizer(BPE(vocab=vocab, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    special = names if kind == "special" else (EOS,)
    rust.add_special_tokens([AddedToken(name, special=True) for name in special])
    rust.add_tokens([AddedToken(name, special=False) for name in names if name not in special])
    return Tokenizer(rust, eos_token_ids=(0,))


@cache
def compiler(kind: str) -> GrammarCompiler:
    return GrammarCompiler(tokenizer(kind))


def thoughts(kind: str, marks: ReasoningMarks | None, thinking: Thinking) -> Thoughts:
    known = tokenizer(kind)

    def special_id(text: str) -> int | None:
        token_id = known.id_of(text)
        return token_id if token_id in known.special_ids else None

    return Thoughts(marks, thinking, special_id)


def some_answer(kind: str, form: StructuredOutputs, chance: random.Random, begin: str = "") -> str:
    """An answer that the grammar admits; tokens that lead to an end are taken more often."""
    known = tokenizer(kind)
    matcher = compiler(kind).matcher(form)
    ids = known.encode(begin, add_special_tokens=False)
    assert matcher.consume_tokens(ids), begin
    num_names = known.vocab_size - 256
    ending = {known.encode(character)[0] for character in '"}],'}
    while len(ids) < MAX_TOKENS and not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(known.vocab_size) if mask[i // 8] >> (i % 8) & 1]
        assert allowed, "a grammar never leaves the model without a token"
        wanted = [i for i in allowed if i < num_names or i in ending]
        token_id = chance.choice(wanted if wanted and chance.random() < 0.5 else allowed)
        if token_id == 0:
            break
        assert matcher.consume_token(token_id)
        ids.append(token_id)
    assume(len(ids) < MAX_TOKENS)
    assert matcher.is_accepting()
    return b"".join(known.token_bytes(i) for i in ids).decode()


def read(
    form: ToolFormat,
    use: ToolUse,
    text: str,
    marks: ReasoningMarks | None = None,
    thinking: Thinking = "none",
) -> tuple[str, str, list[tuple[str, str]]]:
    """Thoughts, content and calls of an answer."""
    names = {tool.name for tool in use.callable_tools}
    splitter = None
    if marks is not None and thinking != "none":
        splitter = ReasoningSplitter(marks, inside=thinking == "inside")
    parser = AnswerParser(splitter, ToolParser(form, names, max_calls=use.max_calls))
    events = parser.push(text) + parser.finish(truncated=False)
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallStarted):
            calls.append((event.name, ""))
        elif isinstance(event, ArgumentsDelta):
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    assert parser.num_calls == len(calls)
    return (
        "".join(event.text for event in events if isinstance(event, ReasoningDelta)),
        "".join(event.text for event in events if isinstance(event, ContentDelta)),
        calls,
    )


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(KINDS),
    st.sampled_from([None, THINK, MISTRAL_THINK]),
    st.sampled_from(["none", "may", "inside"]),
    st.sampled_from([None, frozenset({"get_weather"}), frozenset({"math.add-up", "now"})]),
    st.sampled_from([None, 1, 2]),
    st.randoms(use_true_random=False),
)
def test_every_required_call_is_valid(
    name: str,
    kind: str,
    marks: ReasoningMarks | None,
    thinking: Thinking,
    callable_names: frozenset[str] | None,
    max_calls: int | None,
    chance: random.Random,
) -> None:
    use = ToolUse(
        tools=tuple(TOOLS.values()),
        mode="required",
        callable_names=callable_names,
        max_calls=max_calls,
    )
    before = thoughts(kind, marks, thinking)
    form = StructuredOutputs(grammar=CallGrammar(FORMATS[name], before).write(use))
    text = some_answer(kind, form, chance)
    _, content, calls = read(FORMATS[name], use, text, marks, thinking)
    assert content == "", text
    assert 1 <= len(calls) <= (max_calls or MAX_CALLS), text
    for called, arguments in calls:
        assert called in (callable_names or TOOLS)
        jsonschema.validate(json.loads(arguments), TOOLS[called].parameters)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(KINDS),
    st.sampled_from(["", "One moment. ", "{"]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_free_answers_hold_whole_calls_or_none(
    name: str, kind: str, begin: str, opened: bool, chance: random.Random
) -> None:
    form = FORMATS[name]
    use = ToolUse(tools=tuple(TOOLS.values()))
    grammar = CallGrammar(form, thoughts(kind, None, "none")).write(use)
    begin += form.opening if opened else ""
    spec = StructuredOutputs(grammar=grammar)
    matcher = compiler(kind).matcher(spec)
    ids = tokenizer(kind).encode(begin, add_special_tokens=False)
    # What begins with a brace would be read as a call where these need no mark.
    assume(matcher.try_consume_tokens(ids) == len(ids))
    text = some_answer(kind, spec, chance, begin)
    _, content, calls = read(form, use, text)
    assert bool(calls) or not opened, text
    assert form.opening not in content, text
    if not calls:
        assert content == text
    for called, arguments in calls:
        value = json.loads(arguments)
        assert isinstance(value, dict)
        if TOOLS[called].strict:
            jsonschema.validate(value, TOOLS[called].parameters)


def _admits(kind: str, form: StructuredOutputs, text: str) -> bool:
    matcher = compiler(kind).matcher(form)
    ids = tokenizer(kind).encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_models_write_is_admitted(name: str, kind: str) -> None:
    form = FORMATS[name]
    arguments = '{"city": "Pau", "unit": "C"}'
    call = f'{{"name": "get_weather", "{form.arguments_key}": {arguments}}}'
    if form.name_end:
        call = f"get_weather{form.name_end}{arguments}"
    before = thoughts(kind, None, "none")
    required = ToolUse(tools=[WEATHER], mode="required", max_calls=2)
    spec = StructuredOutputs(grammar=CallGrammar(form, before).write(required))
    one = form.before + call + form.after
    assert _admits(kind, spec, one)
    assert _admits(kind, spec, form.before + call + form.between + call + form.after)
    assert not _admits(kind, spec, f"Hello. {one}")
    assert not _admits(kind, spec, "Hello.")
    assert not _admits(kind, spec, one.replace('"C"', '"K"'))
    free = ToolUse(tools=[WEATHER])
    spec = StructuredOutputs(grammar=CallGrammar(form, before).write(free))
    marked = one if form.before else form.opening + one
    for text in ("Hello.", one, f"One moment.\n\n{marked}"):
        assert _admits(kind, spec, text), text
    assert not _admits(kind, spec, f"One moment. {marked}".replace('"C"', '"K"'))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_a_form_beside_tools(kind: str) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
    use = ToolUse(tools=[NOW])
    grammar = CallGrammar(
        HERMES, thoughts(kind, THINK, "may"), StructuredOutputs(json=schema)
    ).write(use)
    spec = StructuredOutputs(grammar=grammar)
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for text in ('{"a": 1}', call, '<think>Hm.</think>\n\n{"a": 1}', f"<think>\n</think>{call}"):
        assert _admits(kind, spec, text), text
    assert not _admits(kind, spec, '{"a": "1"}')
    assert not _admits(kind, spec, f'{{"a": 1}}{call}')
    # White space is bounded here, too.
    assert not _admits(kind, spec, '{"a":    1}')


FORMS = [
    (StructuredOutputs(json='{"type": "object"}'), '{"a": 1}', "1"),
    (StructuredOutputs(json_object=True, disable_any_whitespace=True), '{"a":1}', '{"a": 1}'),
    (StructuredOutputs(regex=r"[a-c]+/\d{2}|\n}"), "abc/12", "abc/1"),
    (StructuredOutputs(choice=("yes", "no {", 'q"\\')), 'q"\\', "maybe"),
    (StructuredOutputs(grammar='start: "a" start | "}"'), "aa}", "a"),
    (StructuredOutputs(grammar='root ::= "a" root | other\nother ::= "}"'), "aa}", "a"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "good", "bad"), FORMS)
def test_thoughts_before_any_form(form: StructuredOutputs, good: str, bad: str, kind: str) -> None:
    may = thoughts(kind, THINK, "may").before(form)
    inside = thoughts(kind, THINK, "inside").before(form)
    assert thoughts(kind, THINK, "none").before(form) is form
    assert thoughts(kind, None, "may").before(form) is form
    assert _admits(kind, may, good)
    assert not _admits(kind, may, bad)
    for text in (f"{good}</think>{good}", f"Is it {bad}?\n</think>\n\n{good}"):
        assert _admits(kind, inside, text), text
        assert _admits(kind, may, f"<think>{text}"), text
    for text in (good, f"Hm.</think>{bad}", "Hm."):
        assert not _admits(kind, inside, text), text
        assert not _admits(kind, may, f"<think>{text}"), text


@pytest.mark.parametrize(
    ("more", "good", "bad"),
    [
        ({}, ['{"a": 1}', "{}"], ['{"b": 1}', '{"a": "x"}']),
        ({"required": ["b"]}, ['{"a": 1, "b": 2}', '{"b": null}'], ['{"a": 1}']),
        ({"additionalProperties": {"type": "null"}}, ['{"a": 1, "b": null}'], ['{"b": 1}']),
    ],
)
def test_properties_are_not_invented(more: dict[str, Any], good: list[str], bad: list[str]) -> None:
    properties = {"properties": {"a": {"type": "integer"}}}
    tool = Tool(name="f", parameters={"type": "object", **properties, **more})
    use = ToolUse(tools=[tool], mode="required", max_calls=1)
    grammar = CallGrammar(MISTRAL_NAMED, thoughts("text", None, "none")).write(use)
    spec = StructuredOutputs(grammar=grammar)
    for arguments in good:
        assert _admits("text", spec, f"[TOOL_CALLS]f[ARGS]{arguments}"), arguments
    for arguments in bad:
        assert not _admits("text", spec, f"[TOOL_CALLS]f[ARGS]{arguments}"), arguments
