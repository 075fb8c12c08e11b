"""Every family's form of calls through the three dialects: a call, its result, an answer; whole
and streamed, which must come to the same.

The texts and templates are those of support/family_texts.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fake_engine import NAME, FakeEngine, app_over, ask
from support.family_texts import ANSWER, ARGUMENTS, FAMILIES, PARAMETERS, with_family

QUESTION, RESULT = "How high?", "2.5 m"


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def app(family: str, tiny_llama: Path, tmp_path: Path) -> Iterator[tuple[Any, FakeEngine]]:
    model = with_family(tiny_llama, tmp_path / "model", family)
    engine = FakeEngine(model, FAMILIES[family][1], window=4096)
    assert engine.frontend.dialect.tool_format.name.startswith(family)
    yield app_over(engine), engine
    engine.frontend.template.close()


def post(app: Any, path: str, **body: Any) -> Any:
    return ask(app, "POST", path, json={"model": NAME, "max_tokens": 900, **body})


def data_of(response: Any) -> list[Any]:
    lines = response.text.splitlines()
    texts = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(text) for text in texts if text != "[DONE]"]


def say(engine: FakeEngine, family: str) -> None:
    engine.reply = ANSWER.get(family, "It is high.")


def check_prompt(engine: FakeEngine) -> None:
    """The second turn's prompt has the call and its result."""
    prompt = engine.submissions[-1].prompt
    assert prompt is not None
    for part in ("level", "Tours", RESULT, QUESTION):
        assert part in prompt


def test_chat(app: tuple[Any, FakeEngine], family: str) -> None:
    server, engine = app
    tool = {"type": "function", "function": {"name": "level", "parameters": PARAMETERS}}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    path, fields = "/v1/chat/completions", {"tools": [tool], "messages": messages}
    [choice] = post(server, path, **fields).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "level"
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS
    assert not choice["message"]["content"]

    deltas = [
        delta["choices"][0]["delta"] for delta in data_of(post(server, path, **fields, stream=True))
    ]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls") or ()]
    assert pieces[0]["function"]["name"] == "level"
    streamed = "".join(piece["function"].get("arguments") or "" for piece in pieces)
    assert streamed == call["function"]["arguments"]
    assert not "".join(delta.get("content") or "" for delta in deltas)

    say(engine, family)
    messages += [
        choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": RESULT}
    ]  # fmt: skip
    [choice] = post(server, path, **fields).json()["choices"]
    assert choice["message"]["content"] == "It is high."
    assert choice["finish_reason"] == "stop"
    check_prompt(engine)


def test_responses(app: tuple[Any, FakeEngine], family: str) -> None:
    server, engine = app
    tool = {"type": "function", "name": "level", "parameters": PARAMETERS}
    del_max = {"max_tokens": None, "max_output_tokens": 900, "store": False}
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    path, fields = "/v1/responses", {"tools": [tool], "input": items, **del_max}
    [call] = post(server, path, **fields).json()["output"]
    assert (call["type"], call["name"]) == ("function_call", "level")
    assert json.loads(call["arguments"]) == ARGUMENTS

    told = data_of(post(server, path, **fields, stream=True))
    [done] = [event for event in told if event["type"] == "response.function_call_arguments.done"]
    deltas = [e["delta"] for e in told if e["type"] == "response.function_call_arguments.delta"]
    assert done["arguments"] == "".join(deltas) == call["arguments"]
    assert not [event for event in told if event["type"] == "response.output_text.delta"]

    say(engine, family)
    items += [
        call, {"type": "function_call_output", "call_id": call["call_id"], "output": RESULT}
    ]  # fmt: skip
    [message] = post(server, path, **fields).json()["output"]
    assert message["content"][0]["text"] == "It is high."
    check_prompt(engine)


def test_messages(app: tuple[Any, FakeEngine], family: str) -> None:
    server, engine = app
    tool = {"name": "level", "input_schema": PARAMETERS}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    path, fields = "/v1/messages", {"tools": [tool], "messages": messages}
    answer = post(server, path, **fields).json()
    assert answer["stop_reason"] == "tool_use"
    [block] = answer["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "level", ARGUMENTS)

    told = data_of(post(server, path, **fields, stream=True))
    [start] = [event for event in told if event["type"] == "content_block_start"]
    assert start["content_block"]["name"] == "level"
    deltas = [event["delta"] for event in told if event["type"] == "content_block_delta"]
    assert json.loads("".join(delta["partial_json"] for delta in deltas)) == ARGUMENTS

    say(engine, family)
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": RESULT}
    messages += [{"role": "assistant", "content": answer["content"]},
                 {"role": "user", "content": [result]}]  # fmt: skip
    answer = post(server, path, **fields).json()
    assert answer["content"] == [{"type": "text", "text": "It is high."}]
    assert answer["stop_reason"] == "end_turn"
    check_prompt(engine)
