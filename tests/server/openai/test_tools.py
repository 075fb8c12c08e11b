"""Tools in the chat API: how calls come out, what is refused, what reaches the model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from loire.server.openai.chat_protocol import ChatCompletion, ChatCompletionChunk
from support.fake_engine import NAME, FakeEngine, call, events

WINDOW = 4096
"""The tiny model has a token per byte, so explaining the tools takes many."""
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Tours"}}\n</tool_call>'


def _tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **function}}


def _ask(engine: FakeEngine, **fields: Any) -> Any:
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [_tool()],
        **fields,
    }
    return call(engine, "POST", "/v1/chat/completions", json=body)


def _streamed(response: Any) -> tuple[str, list[dict[str, str]], str]:
    """Content, calls and finish reason, put together as a client does."""
    assert response.status_code == 200, response.text
    *chunks, done = events(response)
    assert done == "[DONE]"
    content, calls, finish_reason = "", [], None
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        [choice] = chunk["choices"]
        content += choice["delta"].get("content") or ""
        for delta in choice["delta"].get("tool_calls", ()):
            if "id" in delta:
                assert delta["index"] == len(calls)
                calls.append({"name": delta["function"]["name"], "arguments": ""})
            calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
        finish_reason = choice["finish_reason"] or finish_reason
    assert finish_reason is not None
    return content, calls, finish_reason


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, CALL, window=WINDOW)


def test_a_call_is_a_call(engine: FakeEngine) -> None:
    body = _ask(engine).json()
    ChatCompletion.model_validate(body)
    [choice] = body["choices"]
    [made] = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert made["function"]["name"] == "weather"
    assert json.loads(made["function"]["arguments"]) == {"city": "Tours"}
    assert choice["finish_reason"] == "tool_calls"


def test_a_streamed_call_is_the_same(engine: FakeEngine) -> None:
    content, calls, finish_reason = _streamed(_ask(engine, stream=True))
    assert (content, finish_reason) == ("", "tool_calls")
    assert [entry["name"] for entry in calls] == ["weather"]
    assert json.loads(calls[0]["arguments"]) == {"city": "Tours"}


@pytest.mark.parametrize(
    "reply",
    [
        "No tool needed.",
        '<tool_call>\n{"name": "weather", "arguments": {"city": \n</tool_call>',
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        "<tool_call> nothing </tool_call>",
    ],
)
def test_what_is_no_call_is_text(tiny_llama: Path, reply: str) -> None:
    engine = FakeEngine(tiny_llama, reply, window=WINDOW)
    [choice] = _ask(engine).json()["choices"]
    assert choice["message"]["content"] == reply
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"
    # A call that breaks off may have been begun in the stream: its text follows all the same.
    content, calls, finish_reason = _streamed(_ask(engine, stream=True))
    assert (content, finish_reason) == (reply, "stop")
    assert not calls or '"city": ' in reply


@pytest.fixture
def mistral(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model whose template is in the manner of Mistral's and whose marks are special tokens."""
    shutil.copytree(tiny_llama, tmp_path / "mistral")
    path = str(tmp_path / "mistral" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    marks = ["[TOOL_CALLS]", "[ARGS]"]
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    tokenizer.save(path)
    config = tmp_path / "mistral" / "tokenizer_config.json"
    template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.content }}"
        "{% for call in m.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}[ARGS]"
        "{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    return tmp_path / "mistral"


def test_marks_that_are_special_tokens(mistral: Path) -> None:
    engine = FakeEngine(mistral, '[TOOL_CALLS]weather[ARGS]{"city": "Tours"}', window=WINDOW)
    for stream in (False, True):
        response = _ask(engine, tool_choice="required", stream=stream)
        if stream:
            content, calls, finish_reason = _streamed(response)
        else:
            [choice] = response.json()["choices"]
            calls = [made["function"] for made in choice["message"]["tool_calls"]]
            assert len(choice["message"]["tool_calls"][0]["id"]) == 9
            content, finish_reason = choice["message"]["content"] or "", choice["finish_reason"]
        assert content == ""
        assert [(made["name"], made["arguments"]) for made in calls] == [
            ("weather", '{"city": "Tours"}')
        ]
        assert finish_reason == "tool_calls"
    # The marks are those tokens and no text that looks like them.
    form = engine.submissions[0].request.params.structured_outputs
    assert form is not None
    assert "[TOOL_CALLS]" not in (form.grammar or "")
    # Without tools they are skipped like any special token.
    [choice] = _ask(engine, tools=[]).json()["choices"]
    assert choice["message"]["content"] == 'weather{"city": "Tours"}'


def test_choice_none_offers_nothing(engine: FakeEngine) -> None:
    [choice] = _ask(engine, tool_choice="none").json()["choices"]
    assert choice["message"]["content"] == CALL
    assert "weather" not in (engine.submissions[0].prompt or "")


@pytest.mark.parametrize(
    ("choice", "allowed"),
    [
        ("required", {"weather", "time"}),
        ({"type": "function", "function": {"name": "time"}}, {"time"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "time"}}],
                },
            },
            {"time"},
        ),
    ],
)
def test_a_call_that_must_be_made_is_enforced(
    engine: FakeEngine, choice: Any, allowed: set[str]
) -> None:
    assert _ask(engine, tools=[_tool(), _tool("time")], tool_choice=choice).status_code == 200
    spec = engine.submissions[0].request.params.structured_outputs
    assert spec is not None
    assert spec.grammar is not None
    named = {name for name in ("weather", "time") if f'\\"{name}\\"' in spec.grammar}
    assert named == allowed


@pytest.mark.parametrize(
    ("stop", "finish", "arguments"),
    [
        (["Tours"], "length", ['{"city": "']),
        (["weather"], "length", []),
        (["</tool_call>"], "tool_calls", ['{"city": "Tours"}']),
    ],
)
def test_a_stop_inside_a_required_call_cuts_it_off(
    engine: FakeEngine, stop: list[str], finish: str, arguments: list[str]
) -> None:
    ask: dict[str, Any] = {"tool_choice": "required", "stop": stop}
    [choice] = _ask(engine, **ask).json()["choices"]
    calls = choice["message"].get("tool_calls", [])
    assert [made["function"]["arguments"] for made in calls] == arguments
    assert choice["finish_reason"] == finish
    _, streamed, streamed_finish = _streamed(_ask(engine, stream=True, **ask))
    assert [made["arguments"] for made in streamed] == arguments
    assert streamed_finish == finish


@pytest.mark.parametrize(
    ("reply", "finish"), [('{"a": [1]}', "stop"), ('{"a": 1', "length"), (CALL, "tool_calls")]
)
def test_json_beside_tools_is_whole_or_too_long(tiny_llama: Path, reply: str, finish: str) -> None:
    engine = FakeEngine(tiny_llama, f"{reply}END", window=WINDOW)
    ask: dict[str, Any] = {"response_format": {"type": "json_object"}, "stop": ["END"]}
    [choice] = _ask(engine, **ask).json()["choices"]
    assert choice["finish_reason"] == finish


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "no 'tools'"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "other"}}},
            "tool_choice.function.name",
            "'weather'",
        ),
        ({"tools": [_tool(), _tool()]}, "tools[1].function.name", "'weather'"),
        ({"tools": [_tool("a b")]}, "tools[0].function.name", "pattern"),
        (
            {"tools": [_tool(parameters={"type": "array"})]},
            "tools[0].function.parameters",
            "'weather'",
        ),
        (
            {"tools": [_tool(parameters={"properties": {"a": {"type": "x"}}}, strict=True)]},
            "tools[0].function.parameters",
            "'weather'",
        ),
        *(
            (
                {"tools": [_tool(parameters={"properties": {}, "required": wrong}, strict=True)]},
                "tools[0].function.parameters",
                "'required'",
            )
            for wrong in (5, [[1]], [None], "a", {"a": 1})
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"guided_regex": "a"}, "guided_regex", "tool"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "not for"),
        ({"chat_template_kwargs": {"mood": 1}}, "chat_template_kwargs.mood", "does not occur"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "required"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": 5}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
            "valid string",
        ),
    ],
)
def test_mistakes_are_named(
    engine: FakeEngine, fields: dict[str, Any], param: str, words: str
) -> None:
    response = _ask(engine, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert words in error["message"]


def test_too_many_tools_to_enforce(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama, "x", window=200_000)
    tools = [_tool(f"t{n}", parameters={"enum": [{"a": "x" * 9999}]}) for n in range(9)]
    assert _ask(engine, tools=tools).status_code == 200
    response = _ask(engine, tools=tools, tool_choice="required")
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "tools"
    assert "all tools offered (9) cannot be enforced: their grammar has 9" in error["message"]
    assert "65,536" in error["message"]


def test_calls_and_results_reach_the_template(engine: FakeEngine) -> None:
    made = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "content": "done", "tool_call_id": "1"},
    ]
    assert _ask(engine, tools=[], messages=messages).status_code == 200
    prompt = engine.submissions[0].prompt or ""
    assert '{"name": "f", "arguments": {"a": 1}}' in prompt
    assert "The function f returned this:\ndone\n" in prompt
