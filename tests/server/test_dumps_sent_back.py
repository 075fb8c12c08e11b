"""What the official clients make of an answer, dumped with all its nulls, is taken back as it is:
thoughts, text and calls, whole and streamed, in the three dialects."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from support.fake_engine import NAME, FakeEngine, serving
from support.family_texts import FAMILIES, PARAMETERS, with_family

REPLIES = {
    "text": "It is high.",
    "call": FAMILIES["hermes"][1],
    "thoughts": "<think>\nIs it?\n</think>\n\nIt is high.",
    "all of it": f"<think>\nIs it?\n</think>\n\nI look.\n{FAMILIES['hermes'][1]}",
}
USER: Any = {"role": "user", "content": "How high?"}
FUNCTION: Any = {"name": "level", "parameters": PARAMETERS}


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    folder = tmp_path_factory.mktemp("thinker") / "model"
    with_family(tiny_llama, folder, "hermes")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] += "{# </think> #}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return FakeEngine(folder, window=4096)


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    with serving(engine) as url:
        yield url


@pytest.fixture(scope="module")
def openai(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic(url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def told(engine: FakeEngine, reply: str) -> None:
    """The last prompt has what was answered, as far as the template shows it."""
    prompt = engine.submissions[-1].prompt
    assert prompt is not None
    assert ("It is high." in prompt) == (reply in ("text", "thoughts"))
    assert ("Tours" in prompt) == (reply in ("call", "all of it"))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("reply", REPLIES)
def test_chat(engine: FakeEngine, openai: OpenAI, reply: str, streamed: bool) -> None:
    engine.reply = REPLIES[reply]
    asked: dict[str, Any] = {
        "model": NAME, "tools": [{"type": "function", "function": FUNCTION}],
        "max_tokens": 900, "logprobs": True, "top_logprobs": 1,
    }  # fmt: skip
    if streamed:
        with openai.chat.completions.stream(messages=[USER], **asked) as stream:
            answer = stream.get_final_completion()
    else:
        answer = openai.chat.completions.create(messages=[USER], **asked)
    dump: Any = answer.choices[0].message.model_dump(warnings=False)
    thoughts = (dump.get("reasoning_content") or "").strip()
    assert thoughts == ("Is it?" if REPLIES[reply].startswith("<think>") else "")
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "2.5 m"}
        for call in dump["tool_calls"] or ()
    ]
    openai.chat.completions.create(messages=[USER, dump, *results, USER], **asked)
    told(engine, reply)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("reply", REPLIES)
def test_responses(engine: FakeEngine, openai: OpenAI, reply: str, streamed: bool) -> None:
    engine.reply = REPLIES[reply]
    asked: dict[str, Any] = {
        "model": NAME, "tools": [{"type": "function", **FUNCTION}], "store": False,
        "max_output_tokens": 900, "include": ["reasoning.encrypted_content"],
    }  # fmt: skip
    if streamed:
        with openai.responses.stream(input=[USER], **asked) as stream:
            answer: Any = stream.get_final_response()
    else:
        answer = openai.responses.create(input=[USER], **asked)
    dumps = [item.model_dump(warnings=False) for item in answer.output]
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "2.5 m"}
        for item in answer.output
        if item.type == "function_call"
    ]
    openai.responses.create(input=[USER, *dumps, *results, USER], **asked)
    told(engine, reply)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("reply", REPLIES)
def test_messages(engine: FakeEngine, anthropic: Anthropic, reply: str, streamed: bool) -> None:
    engine.reply = REPLIES[reply]
    asked: dict[str, Any] = {
        "model": NAME, "tools": [{"name": "level", "input_schema": PARAMETERS}], "max_tokens": 900
    }  # fmt: skip
    if streamed:
        with anthropic.messages.stream(messages=[USER], **asked) as stream:
            answer = stream.get_final_message()
    else:
        answer = anthropic.messages.create(messages=[USER], **asked)
    dumps: Any = [block.model_dump(warnings=False) for block in answer.content]
    results: Any = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "2.5 m"}
        for block in answer.content
        if block.type == "tool_use"
    ]
    past = [USER, {"role": "assistant", "content": dumps}]
    anthropic.messages.create(
        messages=[*past, {"role": "user", "content": [*results, {"type": "text", "text": "And?"}]}],
        **asked,
    )
    told(engine, reply)
