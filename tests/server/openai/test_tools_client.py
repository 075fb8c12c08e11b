"""Tools with the official openai client, against a real server process with a random model.

What the model writes is nonsense; that it is a call all the same is the constraint's doing.
"""

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from support.server_process import START_S, start, wait_for
from support.tiny_models import save_tiny_llama

MESSAGES: Any = [{"role": "user", "content": "Is it raining?"}]
BASE: Any = {"model": "tiny", "messages": MESSAGES, "seed": 7, "max_tokens": 600}


class Unit(str, Enum):
    C = "celsius"
    F = "fahrenheit"


class Place(BaseModel):
    inland: bool


class Weather(BaseModel):
    """The weather somewhere."""

    place: Place
    unit: Unit | None


class Hour(BaseModel):
    """The time."""

    summer: bool


TOOLS: list[Any] = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Hour)]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    model = save_tiny_llama(tmp_path_factory.mktemp("long-tiny"), max_positions=4096)
    flags = ["--served-model-name", "tiny", "--dtype", "float32", "--num-threads", "1"]
    server = start(Path(model), *flags, "--kv-cache-memory", "50MB")
    try:
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, START_S)
        with server.client as client:
            yield client
    finally:
        server.process.terminate()
        server.process.wait(START_S)


def _calls(completion: ChatCompletion) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments, checked against the schemas."""
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    made = []
    for call in choice.message.tool_calls or []:
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, SCHEMAS[call.function.name])
        made.append((call.function.name, arguments))
    return made


def _named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_named_tool(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(**BASE, tools=TOOLS, tool_choice=_named(name))
    assert [called for called, _ in _calls(answer)] == [name]


@pytest.mark.parametrize("name", SCHEMAS)
def test_allowed_tools(client: openai.OpenAI, name: str) -> None:
    allowed = {"mode": "required", "tools": [_named(name)]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
    ask = {**BASE, "tools": TOOLS, "tool_choice": choice}
    answer = client.chat.completions.create(**ask, parallel_tool_calls=False)
    assert [called for called, _ in _calls(answer)] == [name]


def test_a_stream_of_calls_is_the_same(client: openai.OpenAI) -> None:
    ask: Any = {**BASE, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = client.chat.completions.create(**ask)
    indices, ids, names, arguments, finish = set(), [], [], "", None
    for chunk in client.chat.completions.create(**ask, stream=True):
        [choice] = chunk.choices
        finish = choice.finish_reason or finish
        for delta in choice.delta.tool_calls or []:
            assert delta.function is not None
            indices.add(delta.index)
            if delta.id is not None:
                assert delta.type == "function"
                ids.append(delta.id)
                names.append(delta.function.name)
            arguments += delta.function.arguments or ""
    assert (indices, len(ids), finish) == ({0}, 1, "tool_calls")
    assert [(names[0], json.loads(arguments))] == _calls(whole)


def test_the_client_parses_arguments(client: openai.OpenAI) -> None:
    ask: Any = {**BASE, "tools": TOOLS, "tool_choice": _named("Weather")}
    [choice] = client.chat.completions.parse(**ask).choices
    [call] = choice.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    with client.chat.completions.stream(**ask) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [call.function.parsed_arguments]


def test_answers_side_by_side(client: openai.OpenAI) -> None:
    ask: Any = {**BASE, "tools": TOOLS, "tool_choice": _named("Weather"), "n": 3}
    choices = client.chat.completions.create(**ask).choices
    ids = {call.id for choice in choices for call in choice.message.tool_calls or []}
    assert len(ids) == 3


def test_a_turn_with_results(client: openai.OpenAI) -> None:
    """What the client gives back of an answer is taken as it is."""
    ask: Any = {**BASE, "tools": TOOLS}
    message = client.chat.completions.create(**ask, tool_choice=_named("Hour")).choices[0].message
    [call] = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "noon"}
    ask |= {"messages": [*MESSAGES, message, result], "max_tokens": 4}
    answer = client.chat.completions.create(**ask)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 4
    assert answer.choices[0].finish_reason in ("stop", "length")
