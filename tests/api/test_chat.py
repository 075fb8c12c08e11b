"""Conversations from Python: tools, forms and thoughts, whole and streamed."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loire import LLM, AsyncLLM, SamplingParams
from loire.base.errors import RequestError
from loire.base.outputs import CompletionOutput, RequestOutput
from loire.base.structured_outputs import StructuredOutputs
from support.tiny_models import save_tiny_llama

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "kv_cache_memory_bytes": 8_000_000,
    "num_threads": 1,
}
GREEDY = SamplingParams(temperature=0, max_tokens=200)
HELLO = [{"role": "user", "content": "Hello"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city", "parameters": CITY},
}
TIME = {"type": "function", "function": {"name": "time"}}
CALL_WEATHER = {"type": "function", "function": {"name": "weather"}}
FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A window for what explains tools: a token of the tiny tokenizer is a byte."""
    return save_tiny_llama(tmp_path_factory.mktemp("chat"), max_positions=4096)


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(str(model), **OPTIONS) as llm:
        yield llm


def joined(outputs: Any) -> CompletionOutput:
    """The pieces of a stream as one output."""
    pieces = [output.outputs[0] for output in outputs]
    return CompletionOutput(
        index=0,
        text="".join(piece.text for piece in pieces),
        token_ids=sum((piece.token_ids for piece in pieces), ()),
        finish_reason=pieces[-1].finish_reason,
        reasoning="".join(piece.reasoning for piece in pieces),
        tool_calls=sum((piece.tool_calls for piece in pieces), ()),
    )


def same(one: CompletionOutput, other: CompletionOutput) -> bool:
    """Whether two answers say the same; the ids of calls are drawn anew."""
    calls = [[(call.name, call.arguments) for call in given.tool_calls] for given in (one, other)]
    parts = [
        (given.text, given.token_ids, given.reasoning, given.finish_reason)
        for given in (one, other)
    ]
    return calls[0] == calls[1] and parts[0] == parts[1]


def test_a_tool_that_must_be_called(model: Path, llm: LLM) -> None:
    chosen: dict[str, Any] = {"tools": [TIME, WEATHER], "tool_choice": CALL_WEATHER}
    [output] = llm.chat(HELLO, GREEDY, **chosen)
    [call] = output.outputs[0].tool_calls
    assert call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    assert output.outputs[0].text == ""
    assert output.outputs[0].finish_reason == "tool_calls"
    assert same(joined(llm.stream(HELLO, GREEDY, **chosen)), output.outputs[0])

    async def ask() -> list[RequestOutput]:
        engine = AsyncLLM(str(model), **OPTIONS)
        try:
            return [piece async for piece in engine.chat(HELLO, GREEDY, **chosen)]
        finally:
            await engine.close()

    assert same(joined(asyncio.run(ask())), output.outputs[0])


def test_what_came_of_a_call_goes_into_the_next_prompt(llm: LLM) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "half past nine"},
    ]
    [output] = llm.chat(messages, SamplingParams(max_tokens=1), tools=[TIME])
    assert output.prompt is not None
    assert "half past nine" in output.prompt
    assert '"name": "time"' in output.prompt


def test_a_form(llm: LLM) -> None:
    [output] = llm.chat(HELLO, GREEDY, response_format=FORM)
    assert json.loads(output.outputs[0].text)["city"] in ("Paris", "Rome")
    assert output.outputs[0].finish_reason == "stop"
    assert same(joined(llm.stream(HELLO, GREEDY, response_format=FORM)), output.outputs[0])
    plain = llm.chat(HELLO, GREEDY, response_format={"type": "text"})
    assert same(plain[0].outputs[0], llm.chat(HELLO, GREEDY)[0].outputs[0])


def test_many_conversations_share_the_options(llm: LLM) -> None:
    outputs = llm.chat([HELLO, HELLO], GREEDY, tools=[WEATHER], tool_choice="required")
    for output in outputs:
        assert output.outputs[0].tool_calls[0].name == "weather"


def test_thoughts_have_a_field_of_their_own(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thinker"
    shutil.copytree(model, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] += "{% if add_generation_prompt %}<think>\n{% endif %}{# </think> #}"
    path.write_text(json.dumps(config))
    with LLM(str(folder), **OPTIONS) as llm:
        [output] = llm.chat(HELLO, GREEDY)
        assert output.outputs[0].reasoning
        assert output.outputs[0].text == ""
        assert same(joined(llm.stream(HELLO, GREEDY)), output.outputs[0])
        formed = StructuredOutputs(choice=("yes", "no"))
        params = SamplingParams(temperature=0, max_tokens=400, structured_outputs=formed)
        [output] = llm.chat(HELLO, params)
        completion = output.outputs[0]
        assert completion.text in ("yes", "no") or completion.finish_reason == "length"


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("tools", {"tools": WEATHER}),
        ("tools[0]", {"tools": ["weather"]}),
        ("tools[0]", {"tools": [{"type": "function"}]}),
        ("tools[0]", {"tools": [{"type": "retrieval"}]}),
        ("tools[0]", {"tools": [{"function": {"name": "a b"}}]}),
        ("tools[0]", {"tools": [{"function": {"name": "a", "returns": {}}}]}),
        ("tools[1].function.parameters", {
            "tools": [TIME, {"function": {"name": "a", "parameters": {"type": "string"}}}]
        }),
        ("tools", {"tools": [TIME, TIME]}),
        ("tool_choice", {"tools": [TIME], "tool_choice": "always"}),
        ("tool_choice", {"tools": [TIME], "tool_choice": CALL_WEATHER}),
        ("tool_choice", {"tool_choice": "required"}),
        ("response_format", {"response_format": {"type": "xml"}}),
        ("response_format", {"response_format": {"type": "json_schema"}}),
        ("response_format", {"response_format": {"type": "text", "json_schema": {}}}),
        ("reasoning_effort", {"reasoning_effort": "much"}),
        ("chat_template_kwargs.colour", {"chat_template_kwargs": {"colour": "red"}}),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(llm: LLM, param: str, options: Any) -> None:
    with pytest.raises(RequestError) as refused:
        llm.chat(HELLO, GREEDY, **options)
    assert refused.value.param == param


def test_one_form_at_a_time_and_none_for_plain_prompts(llm: LLM) -> None:
    form = StructuredOutputs(choice=("a", "b"))
    with pytest.raises(RequestError, match="one form"):
        llm.chat(HELLO, SamplingParams(structured_outputs=form), response_format=FORM)
    with pytest.raises(RequestError, match="for conversations"):
        llm.stream("Hello", GREEDY, tools=[TIME])


THINKER = """{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor -%}
{% if enable_thinking is defined and not enable_thinking %}(no thoughts){% endif -%}
{% if add_generation_prompt %}<assistant>{% endif %}{{ '' if true else '</think>' }}"""


def test_a_system_message_by_default_and_how_much_to_think(model: Path) -> None:
    options = {**OPTIONS, "system": "Be brief.", "chat_template": THINKER}
    with LLM(str(model), **options) as llm:
        [output] = llm.chat(HELLO, SamplingParams(max_tokens=1), reasoning_effort="none")
        assert output.prompt == "<system>Be brief.<user>Hello(no thoughts)<assistant>"
        own = [{"role": "system", "content": "Go on."}, *HELLO]
        [output] = llm.chat(own, SamplingParams(max_tokens=1), reasoning_effort="high")
        assert output.prompt == "<system>Go on.<user>Hello<assistant>"
        for piece in llm.stream(HELLO, SamplingParams(max_tokens=1), reasoning_effort="none"):
            assert piece.prompt is not None
            assert "(no thoughts)" in piece.prompt
