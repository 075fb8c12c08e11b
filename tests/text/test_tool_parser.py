"""Calls are found whatever the pieces, and what is no call stays text to the letter."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.text.tools.events import (
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ToolEvent,
)
from loire.text.tools.formats import GENERIC, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, ToolFormat
from loire.text.tools.parser import ToolParser, new_call_id

NAMES = frozenset({"get_weather", "add"})
FORMATS = {form.name: form for form in (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, GENERIC)}
WEATHER = '{"city": "Paris"}'
ADD = '{"a": 1, "b": [2, {"c": "}"}]}'


@dataclass
class Found:
    """The events of an answer, joined."""

    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    open_calls: list[tuple[str, str]] = field(default_factory=list)
    """Announced, but ended by the length."""


def join(events: list[ToolEvent]) -> Found:
    """What a client puts together from a stream; checks that the order of events makes sense."""
    found = Found()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    ids: set[str] = set()
    open_index: int | None = None
    for event in events:
        match event:
            case ContentDelta(text):
                assert open_index is None
                assert text
                found.content += text
            case CallStarted(index, call_id, name):
                assert open_index is None
                assert call_id not in ids
                ids.add(call_id)
                assert index == len(names)
                names[index], arguments[index], open_index = name, "", index
            case ArgumentsDelta(index, text):
                assert index == open_index
                assert text
                arguments[index] += text
            case CallEnded(index):
                assert index == open_index
                found.calls.append((names[index], arguments[index]))
                open_index = None
            case CallBroken(index):
                assert index == open_index
                open_index = None
    if open_index is not None:
        found.open_calls.append((names[open_index], arguments[open_index]))
    return found


def parse(
    form: ToolFormat,
    pieces: list[str],
    *,
    truncated: bool = False,
    max_calls: int | None = None,
) -> Found:
    parser = ToolParser(form, NAMES, max_calls=max_calls)
    events = [event for piece in pieces for event in parser.push(piece)]
    events += parser.finish(truncated=truncated)
    found = join(events)
    assert parser.num_complete == len(found.calls)
    return found


def write(form: ToolFormat, calls: list[tuple[str, str]]) -> str:
    """Calls as the models of a format write them."""
    texts = [
        f"{name}{form.name_end}{arguments}"
        if form.name_end
        else f'{{"name": "{name}", "{form.arguments_key}": {arguments}}}'
        for name, arguments in calls
    ]
    return form.before + form.between.join(texts) + form.after


BOTH = [("get_weather", WEATHER), ("add", ADD)]
TEXTS = {
    "no call": "Hello <tool> [TOOL] {x} \n there <",
    "json answer": '{"name": "Alice", "arguments": {}}',
    "other json": ' {"answer": 42}\n',
    "unknown tool": '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>',
    "truncated": '<tool_call>\n{"name": "add", "arguments": {"a": 1',
    "truncated name": '<tool_call>{"name": "ad',
    "broken arguments": '<tool_call>{"name": "add", "arguments": {"a": }}</tool_call> and so on',
    "broken, then right": f'<tool_call>{{"name": <tool_call>{{"name": "add", "arguments": {ADD}}}',
    "double brace": f'<tool_call>{{"name": "add", "arguments": {ADD}}}}}</tool_call>',
    "arguments first": f'<tool_call>{{"arguments": {ADD}, "name": "add"}}</tool_call>',
    "no arguments": '<tool_call>{"name": "add"}</tool_call>',
    "null": '<tool_call>{"name": "add", "parameters": null}</tool_call>',
    "as a string": '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
    "half a character": '<tool_call>{"name": "add", "arguments": "{\\"a\\": \\"\\ud800\\"}"}',
    "a list": '<tool_call>[{"name": "add", "arguments": {}}, {"name": "add"}]</tool_call>.',
    "list broken in the second": '<tool_call>[{"name": "add"}, {"name": 5}]</tool_call>',
    "two keys": '<tool_call>{"name": "add", "name": "add"}</tool_call>',
    "both arguments": '<tool_call>{"name": "add", "arguments": {}, "parameters": {}}',
    "with id and type": '<tool_call>{"id": "a", "type": "function", "name": "add"}</tool_call>',
    "other type": '<tool_call>{"type": "tool", "name": "add"}</tool_call>',
    "almost closed": '<tool_call>{"name": "add"}</tool_calls>',
    "text around": 'Let me see.\n\n<tool_call>{"name": "add"}</tool_call>\n\nDone.\n',
    "llama": '<|python_tag|>{"type": "function", "name": "add", "parameters": {}}',
    "llama, two": '{"name": "add", "parameters": {}}; {"name": "add", "parameters": {"a": 2}}\n',
    "llama, lines": '\n{"name": "add", "parameters": {}}\n{"name": "add", "parameters": {"a": 2}}',
    "python": '<|python_tag|>add.call(query="x")',
    "mistral": '[TOOL_CALLS][{"name": "add", "arguments": {}}, {"name": "add", "arguments": {}}]',
    "mistral, with id": '[TOOL_CALLS] [{"name": "add", "arguments": {}, "id": "abc"}]',
    "mistral, named": "[TOOL_CALLS]add{}[TOOL_CALLS]get_weather[ARGS]{}",
    "mistral, call id": '[TOOL_CALLS]add[CALL_ID]123456789[ARGS]{"a": 1}',
    "mistral, unknown": '[TOOL_CALLS]rm[ARGS]{"a": 1}',
    "mistral, no name": "[TOOL_CALLS]]{}",
    "escaped": '<tool_call>{"name": "add", "arguments": {"é\\u00e9\\"": "\\n}"}}</tool_call>',
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("truncated", [False, True])
def test_pieces_do_not_matter(form: str, name: str, truncated: bool) -> None:
    text = TEXTS[name]
    whole = parse(FORMATS[form], [text], truncated=truncated)
    for cut in range(1, len(text)):
        assert parse(FORMATS[form], [text[:cut], text[cut:]], truncated=truncated) == whole
    assert parse(FORMATS[form], list(text), truncated=truncated) == whole


alphabet = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "[ARGS]", "[CALL_ID]", "add",
     '{"name": "add"', ', "arguments": ', ', "parameters": ', '{"a": 1', "}", "]", "[", "{", ",",
     ";", " ", "\n", '"', "x", "<", "</", "é"]
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(
    st.lists(alphabet, max_size=14).map("".join),
    st.sampled_from(sorted(FORMATS)),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.data(),
)
def test_random_text_in_random_pieces(
    text: str, form: str, truncated: bool, max_calls: int | None, data: st.DataObject
) -> None:
    whole = parse(FORMATS[form], [text], truncated=truncated, max_calls=max_calls)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(FORMATS[form], pieces, truncated=truncated, max_calls=max_calls) == whole
    assert len(whole.calls) <= (max_calls or 99)
    for name, arguments in whole.calls:
        assert name in NAMES
        assert isinstance(json.loads(arguments), dict)
    if not whole.calls and not whole.open_calls:
        assert whole.content == text


@settings(deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(
        st.tuples(
            st.sampled_from(sorted(NAMES)),
            st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_what_a_format_writes_is_read(form: str, calls: list[tuple[str, Any]]) -> None:
    written = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    found = parse(FORMATS[form], list(write(FORMATS[form], written)))
    assert found.calls == written
    assert found.content == ""


@pytest.mark.parametrize("form", FORMATS)
def test_content_before_calls(form: str) -> None:
    if FORMATS[form].before == "":
        text = f"One moment.\n<|python_tag|>{write(FORMATS[form], BOTH)}"
    else:
        text = f"One moment.\n{write(FORMATS[form], BOTH)}"
    found = parse(FORMATS[form], [text])
    assert found == Found("One moment.", BOTH)


@pytest.mark.parametrize(
    ("name", "calls", "content"),
    [
        ("arguments first", [("add", ADD)], ""),
        ("no arguments", [("add", "{}")], ""),
        ("null", [("add", "{}")], ""),
        ("as a string", [("add", '{"a": 1}')], ""),
        ("a list", [("add", "{}"), ("add", "{}")], "."),
        ("list broken in the second", [("add", "{}")], ', {"name": 5}]</tool_call>'),
        ("with id and type", [("add", "{}")], ""),
        ("double brace", [("add", ADD)], "}</tool_call>"),
        ("broken, then right", [("add", ADD)], '<tool_call>{"name": '),
        ("almost closed", [("add", "{}")], "</tool_calls>"),
        ("text around", [("add", "{}")], "Let me see.\n\nDone.\n"),
        ("escaped", [("add", '{"é\\u00e9\\"": "\\n}"}')], ""),
    ],
)
def test_hermes(name: str, calls: list[tuple[str, str]], content: str) -> None:
    found = parse(HERMES, [TEXTS[name]])
    assert found.calls == calls
    assert found.content == content


@pytest.mark.parametrize(
    "name",
    ["no call", "json answer", "other json", "unknown tool", "truncated", "truncated name",
     "broken arguments", "half a character", "two keys", "both arguments", "other type"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["hermes", "generic"])
def test_what_is_no_call_is_content_to_the_letter(form: str, name: str) -> None:
    assert parse(FORMATS[form], [TEXTS[name]]) == Found(TEXTS[name])


@pytest.mark.parametrize(
    ("form", "name", "calls"),
    [
        ("llama", "llama", ["{}"]),
        ("llama", "llama, two", ["{}", '{"a": 2}']),
        ("llama", "llama, lines", ["{}", '{"a": 2}']),
        ("mistral", "mistral", ["{}", "{}"]),
        ("mistral", "mistral, with id", ["{}"]),
        ("mistral", "mistral, named", ["{}", "{}"]),
        ("mistral named", "mistral, named", ["{}", "{}"]),
        ("mistral named", "mistral, call id", ['{"a": 1}']),
    ],
)
def test_forms_of_the_families(form: str, name: str, calls: list[str]) -> None:
    found = parse(FORMATS[form], [TEXTS[name]])
    assert [arguments for _, arguments in found.calls] == calls
    assert found.content.strip() == ""


def test_a_bare_object_is_a_call_at_the_beginning_only() -> None:
    text = '{"name": "add", "parameters": {}}'
    assert len(parse(LLAMA, [f" {text}"]).calls) == 1
    assert parse(LLAMA, [f"So: {text}"]) == Found(f"So: {text}")
    assert parse(HERMES, [text]) == Found(text)


def test_a_json_answer_is_not_held_back() -> None:
    parser = ToolParser(LLAMA, NAMES)
    assert parser.push('{"an') == [ContentDelta('{"an')]
    parser = ToolParser(LLAMA, NAMES)
    assert parser.push('{"name": "Al') == [ContentDelta('{"name": "Al')]


def test_arguments_stream() -> None:
    parser = ToolParser(HERMES, NAMES, new_id=lambda: "id")
    assert parser.push('<tool_call>{"name": "add", "arguments": ') == []
    assert parser.push('{"a') == [CallStarted(0, "id", "add"), ArgumentsDelta(0, '{"a')]
    assert parser.push('": 1') == [ArgumentsDelta(0, '": 1')]
    assert parser.push("}") == [ArgumentsDelta(0, "}")]
    assert parser.push("}") == [CallEnded(0)]


def test_a_call_that_breaks_after_it_was_told_is_revoked() -> None:
    parser = ToolParser(HERMES, NAMES, new_id=lambda: "id")
    begin = '<tool_call>{"name": "add", "arguments": {"a'
    assert parser.push(begin)[-1] == ArgumentsDelta(0, '{"a')
    events = parser.push('"} x')
    assert events[-2:] == [CallBroken(0), ContentDelta(begin + '"} x')]


def test_a_call_cut_off_by_the_length_stays_open() -> None:
    found = parse(HERMES, [TEXTS["truncated"]], truncated=True)
    assert found == Found("", [], [("add", '{"a": 1')])
    # Before its name is known it is no call yet.
    text = TEXTS["truncated name"]
    assert parse(HERMES, [text], truncated=True) == Found(text)


def test_most_calls() -> None:
    text = write(HERMES, BOTH)
    found = parse(HERMES, [text], max_calls=1)
    assert found.calls == BOTH[:1]
    assert '"name": "add"' in found.content


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{" * 20_000,
        '<tool_call>{"arguments": "' + '<tool_call>{\\"' * 20_000,
        "<" * 200_000,
        " \n" * 100_000,
        "[TOOL_CALLS]" * 20_000,
        '{"name": "add", "parameters": {"a": ' + "[" * 200_000,
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_hostile_text_takes_linear_time(form: str, text: str) -> None:
    begin = time.process_time()
    assert parse(FORMATS[form], [text]).content == text
    assert time.process_time() - begin < 5


def test_ids() -> None:
    assert new_call_id().startswith("call_")
    assert new_call_id() != new_call_id()
    assert len(new_call_id(9)) == 9
    assert new_call_id(9).isalnum()
