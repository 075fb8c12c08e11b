"""Twenty requests side by side in one batch, whose texts are those of all families: what is the
model's own form is a call, in every dialect, streamed as whole; what is another's is content.

The real scheduler over a scripted executor; a step gives each of them one byte.
"""

import asyncio
import json
import random
import re
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from support.family_texts import ARGUMENTS, FAMILIES, PARAMETERS, with_family
from support.scripted_server import NAME, scripted_engine

NUM_REQUESTS = 20
Said = tuple[str, list[tuple[str, str]], str]
"""Content, calls with their arguments, and how the answer ended."""


def mistaken(text: str, place: int) -> str:
    """The text with another character at a place."""
    return text[:place] + random.Random(place).choice('<"}x') + text[place + 1 :]


def texts() -> list[str]:
    """One of each family, and some with mistakes."""
    own = [text for _, text in FAMILIES.values()]
    return own + [mistaken(own[n], 40 + 7 * n) for n in range(NUM_REQUESTS - len(own))]


TEXTS = texts()


async def whole(client: httpx.AsyncClient, number: int) -> Said:
    body = request(number)
    answer = (await client.post(PATHS[number % 3], json=body, timeout=60)).json()
    assert not answer.get("error"), answer
    if number % 3 == 0:
        [choice] = answer["choices"]
        message = choice["message"]
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        told = [(call["name"], call["arguments"]) for call in calls]
        return message["content"] or "", told, choice["finish_reason"]
    if number % 3 == 1:
        return of_items(answer["output"], answer["status"])
    return of_blocks(answer["content"], answer["stop_reason"])


def of_items(items: list[Any], status: str) -> Said:
    content = "".join(
        part["text"] for item in items if item["type"] == "message" for part in item["content"]
    )
    calls = [item for item in items if item["type"] == "function_call"]
    told = [(item["name"], item["arguments"]) for item in calls if item["status"] == "completed"]
    return content, told, status


def of_blocks(blocks: list[Any], reason: str) -> Said:
    content = "".join(block["text"] for block in blocks if block["type"] == "text")
    calls = [block for block in blocks if block["type"] == "tool_use"]
    return content, [(call["name"], json.dumps(call["input"])) for call in calls], reason


async def streamed(client: httpx.AsyncClient, number: int) -> Said:
    body = {**request(number), "stream": True}
    response = await client.post(PATHS[number % 3], json=body, timeout=60)
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    told = [json.loads(line) for line in lines if line != "[DONE]"]
    if number % 3 == 0:
        return of_chunks(told)
    if number % 3 == 1:
        response = told[-1]["response"]
        deltas = [e["delta"] for e in told if e["type"] == "response.output_text.delta"]
        content, calls, status = of_items(response["output"], response["status"])
        assert "".join(deltas) == content
        return content, calls, status
    return of_message_events(told)


def of_chunks(chunks: list[Any]) -> Said:
    content, reason = "", ""
    calls: dict[int, tuple[str, str]] = {}
    for chunk in chunks:
        [choice] = chunk["choices"]
        content += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        for piece in choice["delta"].get("tool_calls") or ():
            name, text = calls.get(piece["index"], (piece["function"].get("name", ""), ""))
            calls[piece["index"]] = name, text + (piece["function"].get("arguments") or "")
    return content, list(calls.values()), reason


def of_message_events(events: list[Any]) -> Said:
    blocks: list[Any] = []
    reason = ""
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            if delta["type"] == "text_delta":
                blocks[-1]["text"] += delta["text"]
            else:
                blocks[-1]["json"] += delta["partial_json"]
        elif event["type"] == "message_delta":
            reason = event["delta"]["stop_reason"]
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["json"] or "{}")
    return of_blocks(blocks, reason)


PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")


def request(number: int) -> dict[str, Any]:
    """In one of the three dialects."""
    messages = [{"role": "user", "content": f"Say #{number}#."}]
    about: dict[str, Any] = {"name": "level", "description": "d"}
    if number % 3 == 0:
        tool = {"type": "function", "function": {**about, "parameters": PARAMETERS}}
        return {"model": NAME, "messages": messages, "tools": [tool], "max_tokens": 900}
    if number % 3 == 1:
        tool = {"type": "function", **about, "parameters": PARAMETERS}
        more = {"max_output_tokens": 900, "store": False}
        return {"model": NAME, "input": messages, "tools": [tool], **more}
    tool = {**about, "input_schema": PARAMETERS}
    return {"model": NAME, "messages": messages, "tools": [tool], "max_tokens": 900}


def script(prompt: str) -> str:
    [number] = re.findall(r"#(\d+)#", prompt)
    return TEXTS[int(number)]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_side_by_side(family: str, tiny_llama: Path, tmp_path: Path) -> None:
    engine = scripted_engine(with_family(tiny_llama, tmp_path / "model", family), script)
    app = create_app(ServedModel([NAME], engine))

    async def everything() -> tuple[list[Said], list[Said]]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            numbers = range(NUM_REQUESTS)
            wholes: list[Coroutine[Any, Any, Said]] = [whole(client, n) for n in numbers]
            streams = [streamed(client, n) for n in numbers]
            told = await asyncio.gather(*wholes, *streams)
            return told[:NUM_REQUESTS], told[NUM_REQUESTS:]

    try:
        wholes, streams = asyncio.run(everything())
    finally:
        engine.link.close()
        engine.frontend.template.close()
    own = list(FAMILIES).index(family)
    [(name, arguments)] = wholes[own][1]
    assert (name, json.loads(arguments)) == ("level", ARGUMENTS)
    for number, (one, other) in enumerate(zip(wholes, streams, strict=True)):
        assert one == other, TEXTS[number]
