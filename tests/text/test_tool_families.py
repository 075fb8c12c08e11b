"""Each family's form of calls: read whatever the pieces, recognised by the template, enforced."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from loire.base.structured_outputs import StructuredOutputs
from loire.text.grammar import GrammarCompiler, grammar_threads
from loire.text.reasoning_grammar import Thoughts
from loire.text.tokenizer import Tokenizer as LoireTokenizer
from loire.text.tools.blocks import MAX_CLOSINGS
from loire.text.tools.deepseek import DEEPSEEK, KIMI
from loire.text.tools.definitions import Tool, ToolUse
from loire.text.tools.dsml import DSML, DSML_TOOLS
from loire.text.tools.events import (
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ToolEvent,
)
from loire.text.tools.families import call_parser, choose_format
from loire.text.tools.formats import (
    GENERIC,
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    NEMOTRON,
    PHI,
    ToolFormat,
)
from loire.text.tools.gemma import GEMMA
from loire.text.tools.glm import GLM
from loire.text.tools.grammar import CallGrammar
from loire.text.tools.harmony import HARMONY
from loire.text.tools.minimax import MINIMAX
from loire.text.tools.pythonic import LFM2, LLAMA_PYTHONIC
from loire.text.tools.qwen_coder import QWEN_CODER

LEVEL = Tool(
    name="river_level",
    parameters={
        "type": "object",
        "properties": {
            "station": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "unit": {"enum": ["m", "cm"]},
            "marks": {"type": "array", "items": {"type": "number"}},
            "note": {"type": ["string", "null"]},
        },
        "required": ["station"],
    },
)
BOATS = Tool(name="list-boats")
TOOLS = (LEVEL, BOATS)
FULL = {"station": "Tours, <nord> & 7", "days": 3, "exact": True, "marks": [1.5, 2]}
DIGITS = {"station": "37000"}

Calls = list[tuple[str, Any]]
ONE: Calls = [("river_level", FULL)]
TWO: Calls = [("river_level", DIGITS), ("list-boats", {})]

RECORDED: list[tuple[ToolFormat, str, str, Calls]] = [
    (QWEN_CODER,
     "I look.\n\n<tool_call>\n<function=river_level>\n<parameter=station>\nTours, <nord> & 7\n"
     "</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n"
     "<parameter=marks>\n[1.5, 2]\n</parameter>\n</function>\n</tool_call>", "I look.", ONE),
    (QWEN_CODER,
     "<tool_call>\n<function=river_level>\n<parameter=station>\n37000\n</parameter>\n</function>\n"
     "</tool_call>\n<tool_call>\n<function=list-boats>\n</function>\n</tool_call>", "", TWO),
    (QWEN_CODER,
     "<tool_call>\n<function=river_level>\n<parameter=station>\na\n\nb</parameter> c\n"
     "</parameter>\n<parameter=note>\nnull\n</parameter>\n</function>\n</tool_call>\n", "",
     [("river_level", {"station": "a\n\nb</parameter> c", "note": None})]),
    (GLM,
     "Well\n<tool_call>river_level\n<arg_key>station</arg_key>\n<arg_value>Tours, <nord> & 7"
     "</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n<arg_key>exact</arg_key>\n"
     "<arg_value>true</arg_value>\n<arg_key>marks</arg_key>\n<arg_value>[1.5, 2]</arg_value>\n"
     "</tool_call>", "Well", ONE),
    (GLM,
     "<tool_call>river_level<arg_key>station</arg_key><arg_value>37000</arg_value></tool_call>"
     "<tool_call>list-boats</tool_call>", "", TWO),
    (MINIMAX,
     '\n<minimax:tool_call>\n<invoke name="river_level">\n<parameter name="station">37000'
     '</parameter>\n</invoke>\n<invoke name="list-boats">\n</invoke>\n</minimax:tool_call>',
     "", TWO),
    (MINIMAX,
     'So:\n<minimax:tool_call>\n<invoke name="river_level">\n<parameter name="station">Tours, '
     '<nord> & 7</parameter>\n<parameter name="days">3</parameter>\n<parameter name="exact">true'
     '</parameter>\n<parameter name="marks">[1.5, 2]</parameter>\n</invoke>\n'
     '</minimax:tool_call>', "So:", ONE),
    (DEEPSEEK,
     "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>river_level<｜tool▁sep｜>" + json.dumps(FULL)
     + "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "Hm.", ONE),
    (DEEPSEEK,
     '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>river_level<｜tool▁sep｜>{"station": "37000"}'
     "<｜tool▁call▁end｜><｜tool▁call▁begin｜>list-boats<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
     "<｜tool▁calls▁end｜>", "", TWO),
    (DEEPSEEK,
     "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>river_level\n```json\n"
     '{"station": "37000"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "", TWO[:1]),
    (DSML,
     'So.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="river_level">\n'
     '<｜DSML｜parameter name="station" string="true">Tours, <nord> & 7</｜DSML｜parameter>\n'
     '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
     '<｜DSML｜parameter name="exact" string="false">true</｜DSML｜parameter>\n'
     '<｜DSML｜parameter name="marks" string="false">[1.5, 2]</｜DSML｜parameter>\n'
     "</｜DSML｜invoke>\n</｜DSML｜function_calls>", "So.", ONE),
    (DSML_TOOLS,
     '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="river_level">\n'
     '<｜DSML｜parameter name="station" string="true">37000</｜DSML｜parameter>\n'
     '</｜DSML｜invoke>\n<｜DSML｜invoke name="list-boats">\n</｜DSML｜invoke>\n'
     "</｜DSML｜tool_calls>", "", TWO),
    (DSML,
     '<｜DSML｜function_calls>\n<｜DSML｜invoke name="river_level">\n<｜DSML｜parameter name="a" '
     'string="true">1</｜DSML｜parameter>\n<｜DSML｜parameter name="b" string="false">1'
     "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>", "",
     [("river_level", {"a": "1", "b": 1})]),
    (KIMI,
     "Yes<|tool_calls_section_begin|><|tool_call_begin|>functions.river_level:0"
     "<|tool_call_argument_begin|>" + json.dumps(FULL) + "<|tool_call_end|>"
     "<|tool_calls_section_end|>", "Yes", ONE),
    (KIMI,
     "<|tool_calls_section_begin|><|tool_call_begin|>functions.river_level:0"
     '<|tool_call_argument_begin|>{"station": "37000"}<|tool_call_end|><|tool_call_begin|>'
     "functions.list-boats:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
     "<|tool_calls_section_end|>", "", TWO),
    (LFM2,
     '<|tool_call_start|>[river_level(station="Tours, <nord> & 7", days=3, exact=True, '
     "marks=[1.5, 2])]<|tool_call_end|>Checking.", "Checking.", ONE),
    (LFM2,
     "<|tool_call_start|>[river_level(station='37000'), list-boats()]<|tool_call_end|>", "", TWO),
    (LFM2,
     '<|tool_call_start|>[{"name": "river_level", "arguments": {"station": "37000"}}]'
     "<|tool_call_end|>", "", TWO[:1]),
    (LLAMA_PYTHONIC,
     '[river_level(station="37000"), list-boats()]', "", TWO),
    (LLAMA_PYTHONIC,
     "<|python_start|>[river_level(station='Tours, <nord> & 7', days=3, exact=True, "
     "marks=[1.5, 2])]<|python_end|>", "", ONE),
    (GEMMA,
     'Now<|tool_call>call:river_level{days:3,exact:true,marks:[1.5,2],station:<|"|>Tours, <nord> '
     '& 7<|"|>}<tool_call|>', "Now", ONE),
    (GEMMA,
     '<|tool_call>call:river_level{station:<|"|>37000<|"|>}<tool_call|><|tool_call>call:list-boats{}'
     "<tool_call|>", "", TWO),
    (NEMOTRON,
     'Ok\n\n<TOOLCALL>[{"name": "river_level", "arguments": ' + json.dumps(FULL) + "}]</TOOLCALL>",
     "Ok", ONE),
    (NEMOTRON,
     '<TOOLCALL>[{"name": "river_level", "arguments": {"station": "37000"}}, '
     '{"name": "list-boats", "arguments": {}}]</TOOLCALL>', "", TWO),
    (GRANITE,
     '<|tool_call|>[{"name": "river_level", "arguments": {"station": "37000"}}, '
     '{"name": "list-boats", "arguments": {}}]', "", TWO),
    (PHI,
     '<|tool_call|>[{"name": "river_level", "arguments": ' + json.dumps(FULL) + "}]<|/tool_call|>",
     "", ONE),
]  # fmt: skip
BLOCKS = (QWEN_CODER, GLM, MINIMAX, DSML, DEEPSEEK, KIMI, LFM2, LLAMA_PYTHONIC, GEMMA)
CASES = [pytest.param(*case, id=f"{case[0].name}-{i}") for i, case in enumerate(RECORDED)]
MARKED = [
    case for case in CASES
    # Without marks, a text is calls or none.
    if case.values[0] is not LLAMA_PYTHONIC or not str(case.values[1]).startswith("[")
]  # fmt: skip
IN_BLOCKS = [
    case for case in CASES
    # tests/text/test_tool_parser.py has the others.
    if isinstance(case.values[0], ToolFormat) and case.values[0].block is not None
    and case.values[0] is not LLAMA_PYTHONIC
]  # fmt: skip


def read(
    tool_format: ToolFormat, pieces: list[str], *, truncated: bool = False, **more: Any
) -> tuple[str, Calls]:
    """Content, and calls, of an answer that comes in these pieces."""
    ids = iter(range(100))
    parser = call_parser(tool_format, TOOLS, new_id=lambda: str(next(ids)), **more)
    events: list[ToolEvent] = []
    for piece in pieces:
        events += parser.push(piece)
    events += parser.finish(truncated=truncated)
    content, calls = "", []
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for event in events:
        match event:
            case ContentDelta(text):
                content += text
            case CallStarted(index, _, name):
                names[index], arguments[index] = name, ""
            case ArgumentsDelta(index, text):
                arguments[index] += text
            case CallEnded(index):
                calls.append((names[index], json.loads(arguments[index])))
            case CallBroken(index):
                del names[index]
    assert parser.num_complete == len(calls)
    return content, calls


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), CASES)
def test_recorded_texts_at_every_split(
    tool_format: ToolFormat, text: str, content: str, calls: Calls
) -> None:
    assert read(tool_format, [text]) == (content, calls)
    assert read(tool_format, list(text)) == (content, calls)
    for place in range(1, len(text)):
        assert read(tool_format, [text[:place], text[place:]]) == (content, calls), place


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), MARKED)
def test_text_after_and_between_is_content(
    tool_format: ToolFormat, text: str, content: str, calls: Calls
) -> None:
    longer = f"{text}\n And  so on. "
    for pieces in ([longer], list(longer)):
        found, found_calls = read(tool_format, pieces)
        assert found_calls == calls
        assert found.replace(" ", "").replace("\n", "") == (content + "Andsoon.").replace(" ", "")


@pytest.mark.parametrize("tool_format", BLOCKS, ids=lambda tool_format: tool_format.name)
def test_what_is_no_call_is_content(tool_format: ToolFormat) -> None:
    opening, closing = tool_format.opening, tool_format.closing
    for text in (
        f"a {opening} b",
        f"{opening}nonsense{closing}",
        f"{opening}{closing}" * (MAX_CLOSINGS + 3),
        f"x {closing} y",
        opening[:-1],
        f"{opening}{opening}",
    ):
        whole = read(tool_format, [text])
        assert whole == read(tool_format, list(text)) == (text, []) or not whole[1]
        assert "".join(whole[0].split()) == "".join(text.split())


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), IN_BLOCKS)
def test_a_call_of_another_tool_is_content_and_the_next_one_is_read(
    tool_format: ToolFormat, text: str, content: str, calls: Calls
) -> None:
    other = text.replace("river_level", "rain_level")
    for pieces in ([other + text], list(other + text)):
        found, found_calls = read(tool_format, pieces)
        assert ("river_level", calls[0][1]) in found_calls
        assert "rain_level" in found


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), CASES)
def test_calls_are_limited_and_cut_ones_are_none(
    tool_format: ToolFormat, text: str, content: str, calls: Calls
) -> None:
    assert read(tool_format, [text], max_calls=1)[1] == calls[:1]
    if tool_format.block is not None:
        cut = text[: text.index("river_level") + len("river_level")]
        assert read(tool_format, list(cut), truncated=True)[1] == []


def test_types_follow_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "ref": {"$ref": "#/$defs/word"},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "either": {"type": ["integer", "string"]},
            "any": {},
            "object": {"type": "object"},
        },
        "$defs": {"word": {"type": "string"}},
    }
    values = {"text": "1", "ref": "null", "maybe": "null", "either": "x1", "any": "[1]",
              "object": '{"a": 1}', "unknown": "true"}  # fmt: skip
    parts = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    parser = call_parser(QWEN_CODER, [Tool(name="f", parameters=schema)])
    events = parser.push(f"<tool_call>\n<function=f>\n{parts}</function>\n</tool_call>")
    [arguments] = [event.text for event in events if isinstance(event, ArgumentsDelta)]
    assert json.loads(arguments) == {
        "text": "1", "ref": "null", "maybe": None, "either": "x1", "any": [1],
        "object": {"a": 1}, "unknown": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("<tool_call>\n<function=example>\n<parameter=x>", QWEN_CODER),
        ("<tool_call>{name}\n<arg_key>{key}</arg_key>", GLM),
        ("{{ '<minimax:tool_call>' }}", MINIMAX),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", DEEPSEEK),
        ("<｜DSML｜function_calls>", DSML),
        ("{{ dsml }} ｜DSML｜ {{ '<｜DSML｜tool_calls>' }}", DSML_TOOLS),
        ("<|start|>assistant<|channel|>final<|message|>", HARMONY),
        ("<|tool_calls_section_begin|><|tool_call_begin|>", KIMI),
        ("<|im_system|>tool_declare<|im_middle|>", KIMI),
        ("List of tools: <|tool_list_start|>[", LFM2),
        ("[func_name1(params_name1=params_value1)]", LLAMA_PYTHONIC),
        ("<|tool_call>call:{{ name }}<tool_call|>", GEMMA),
        ("<TOOLCALL>[", NEMOTRON),
        ("'<|tool_call|>['", GRANITE),
        ("<|tool_call|>[]<|/tool_call|>", PHI),
        ("<tool_call>\n{\"name\": <name>}", HERMES),
        ('<|python_tag|> "parameters": ', LLAMA),
        ("[TOOL_CALLS]", MISTRAL),
        ("[TOOL_CALLS] [ARGS]", MISTRAL_NAMED),
        ("{{ tools | tojson }}", GENERIC),
    ],
)  # fmt: skip
def test_the_template_tells_the_form(
    template: str, expected: ToolFormat, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_format(template) is expected
    assert bool(caplog.records) is (expected is GENERIC)


def _tokenizer(*, special: bool) -> LoireTokenizer:
    """Bytes, and the marks of all forms: as special tokens, or as text."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = Tokenizer(models.BPE({char: i for i, char in enumerate(characters)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    marks = sorted({mark for tool_format in BLOCKS for mark in tool_format.markers})
    rust.add_special_tokens([AddedToken("<|eos|>", special=True)])
    if special:
        rust.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    eos = rust.token_to_id("<|eos|>")
    assert eos is not None
    return LoireTokenizer(rust, eos_token_ids=(eos,))


TOKENIZERS = {special: _tokenizer(special=special) for special in (True, False)}
COMPILERS = {special: GrammarCompiler(one) for special, one in TOKENIZERS.items()}


def accepts(tool_format: ToolFormat, use: ToolUse, text: str, *, special: bool) -> bool:
    tokenizer = TOKENIZERS[special]

    def special_id(mark: str) -> int | None:
        token_id = tokenizer.id_of(mark)
        return token_id if token_id in tokenizer.special_ids else None

    grammar = CallGrammar(tool_format, Thoughts(None, "none", special_id)).write(use)
    with grammar_threads(1) as threads:
        spec = StructuredOutputs(grammar=grammar)
        matcher = threads.submit(COMPILERS[special].matcher, spec).result()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return matcher.consume_tokens(tokens) and matcher.is_accepting()


WRITTEN: dict[str, tuple[str, list[str]]] = {
    QWEN_CODER.name: (
        "<tool_call>\n<function=river_level>\n<parameter=station>\nTours, <nord> & 7\n"
        "</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=unit>\ncm\n</parameter>\n"
        "</function>\n</tool_call>",
        ["\n3\n", "\ncm\n", "<parameter=station>\nTours, <nord> & 7\n</parameter>\n"],
    ),
    GLM.name: (
        "<tool_call>river_level\n<arg_key>station</arg_key>\n<arg_value>Tours</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n<arg_key>unit</arg_key>\n"
        "<arg_value>cm</arg_value>\n</tool_call>",
        [">3<", ">cm<", "<arg_key>station</arg_key>\n<arg_value>Tours</arg_value>\n"],
    ),
    MINIMAX.name: (
        '<minimax:tool_call>\n<invoke name="river_level">\n<parameter name="station">Tours'
        '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
        [">3<", '<parameter name="station">Tours</parameter>\n'],
    ),
    DSML.name: (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="river_level">\n'
        '<｜DSML｜parameter name="station" string="true">T</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="unit" string="true">cm</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        [">3<", ">cm<",
         '<｜DSML｜parameter name="station" string="true">T</｜DSML｜parameter>\n'],
    ),
    DEEPSEEK.name: (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>river_level<｜tool▁sep｜>{"station": "T", '
        '"days": 3, "unit": "cm"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        [" 3,", '"cm"', '"station": "T", '],
    ),
    KIMI.name: (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.river_level:0"
        '<|tool_call_argument_begin|>{"station": "T", "days": 3}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
        [" 3}", '"station": "T", '],
    ),
    LFM2.name: (
        '<|tool_call_start|>[river_level(station="T", days=3, exact=True, unit="cm")]'
        "<|tool_call_end|>",
        ["=3,", '"cm"', 'station="T", '],
    ),
    LLAMA_PYTHONIC.name: (
        '[river_level(station="T", days=3, marks=[1.5, 2])]', ["=3,", 'station="T", ']
    ),
    GEMMA.name: (
        '<|tool_call>call:river_level{station:<|"|>T<|"|>,days:3,marks:[1.5,2],unit:<|"|>cm<|"|>}'
        "<tool_call|>",
        [":3,", "cm", 'station:<|"|>T<|"|>,'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("tool_format", BLOCKS, ids=lambda tool_format: tool_format.name)
def test_required_calls_are_enforced_and_read_again(tool_format: ToolFormat, special: bool) -> None:
    text, parts = WRITTEN[tool_format.name]
    use = ToolUse(tools=TOOLS, mode="required")
    assert accepts(tool_format, use, text, special=special)
    content, [(name, arguments)] = read(tool_format, list(text))
    assert (content, name) == ("", "river_level")
    assert arguments["days"] == 3
    for part in parts:
        assert part in text
        wrong = "" if "T" in part else part.replace("3", "x").replace("cm", "inch")
        assert not accepts(tool_format, use, text.replace(part, wrong), special=special), part
    assert not accepts(tool_format, use, "Hello", special=special)
    assert not accepts(tool_format, use, text.replace("river", "rain"), special=special)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("tool_format", BLOCKS, ids=lambda tool_format: tool_format.name)
def test_free_answers_may_call(tool_format: ToolFormat, special: bool) -> None:
    text, _ = WRITTEN[tool_format.name]
    use = ToolUse(tools=TOOLS, max_calls=1)
    assert accepts(tool_format, use, "Just words.", special=special)
    assert accepts(tool_format, use, text, special=special)
    if not tool_format.bare:
        assert accepts(tool_format, use, f"I look. {text}", special=special)
        assert not accepts(tool_format, use, text + text, special=special)


def test_a_list_that_is_no_call_is_said_once() -> None:
    for text in ("[1, 2]", "[TOOL_CALLS] x", "[", "[list-boats(] or not"):
        assert read(LLAMA_PYTHONIC, list(text)) == read(LLAMA_PYTHONIC, [text]) == (text, [])
