"""Every call that the default model must make is valid, whatever the tools."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openai.types.chat import ChatCompletion

from support.server_process import START_S, Server, start, wait_for

NUM_REQUESTS = 60
WORDS = ("city", "day", "count", "unit", "name", "note", "where", "of", "kind", "is_new")


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[Server]:
    running = start(smollm2, "--served-model-name", "smollm2", "--kv-cache-memory", "500MB")
    try:
        wait_for(lambda: httpx.get(f"{running.url}/health").status_code == 200, START_S)
        yield running
    finally:
        running.process.terminate()
        running.process.wait(START_S)


def _schema(chance: random.Random, depth: int) -> dict[str, Any]:
    """A schema of some value; its texts and lists are short, so that a call comes to its end."""
    kinds = ["text", "enum", "integer", "boolean", "pattern"]
    kinds += ["list", "object", "either"] if depth else []
    match chance.choice(kinds):
        case "text":
            return {"type": "string", "maxLength": chance.randint(1, 20)}
        case "enum":
            return {"enum": chance.sample([*WORDS, 1, 2.5, None, True, 'a "b"', "é"], 3)}
        case "integer":
            low = chance.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 99)}
        case "boolean":
            return {"type": "boolean"}
        case "pattern":
            return {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"}
        case "list":
            items = _schema(chance, depth - 1)
            return {"type": "array", "items": items, "minItems": 1, "maxItems": 3}
        case "either":
            return {"anyOf": [_schema(chance, 0), {"type": "null"}]}
    return _object(chance, depth - 1)


def _object(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(WORDS, chance.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _schema(chance, depth) for name in names},
        "required": chance.sample(names, chance.randint(0, len(names))),
        "additionalProperties": False,
    }


def _tools(chance: random.Random) -> list[Any]:
    return [
        {"type": "function", "function": {"name": name, "parameters": _object(chance, 2)}}
        for name in chance.sample(WORDS, chance.randint(1, 3))
    ]


@pytest.mark.slow
def test_every_required_call_is_valid(server: Server) -> None:
    client = server.client
    chance = random.Random(4)
    offers = [_tools(chance) for _ in range(NUM_REQUESTS)]

    def ask(seed: int) -> ChatCompletion:
        return client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Note that it rained in Tours for 3 days."}],
            tools=offers[seed],
            tool_choice="required",
            parallel_tool_calls=seed % 2 == 0,
            temperature=1,
            seed=seed,
            max_tokens=400,
        )

    with client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(NUM_REQUESTS)))
    num_whole = num_calls = 0
    for tools, answer in zip(offers, answers, strict=True):
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        [choice] = answer.choices
        if choice.finish_reason == "length":
            continue
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        calls = choice.message.tool_calls or []
        assert calls
        for call in calls:
            assert call.type == "function"
            arguments = json.loads(call.function.arguments)
            jsonschema.validate(arguments, schemas[call.function.name])
        num_whole += 1
        num_calls += len(calls)
    print(f"{num_calls} calls in {num_whole} of {NUM_REQUESTS} answers")
    assert num_whole > NUM_REQUESTS / 2
