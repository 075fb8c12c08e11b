"""Answers that go on within the last message, and prompts that end after it."""

from pathlib import Path
from typing import Any

import pytest

from support.fake_engine import NAME, FakeEngine, call

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
TURNS = [
    {"role": "user", "content": "A poem, please."},
    {"role": "assistant", "content": "Roses are"},
]


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, window=2048)


def ask(engine: FakeEngine, path: str, messages: Any = TURNS, **fields: Any) -> Any:
    limit = {"max_tokens": 20} if path == MESSAGES else {}
    return call(engine, "POST", path, json={"model": NAME, "messages": messages, **limit, **fields})


def prompt(engine: FakeEngine) -> str:
    text = engine.submissions[-1].prompt
    assert text is not None
    return text


def test_a_chat_goes_on_within_the_last_message(engine: FakeEngine) -> None:
    for flag in ({}, {"add_generation_prompt": False}):
        answer = ask(engine, CHAT, continue_final_message=True, **flag).json()
        assert answer["choices"][0]["message"]["content"] == engine.reply
        assert prompt(engine).endswith("Roses are")


def test_a_chat_without_it_begins_a_message(engine: FakeEngine) -> None:
    ask(engine, CHAT)
    begun = prompt(engine)
    assert not begun.endswith("Roses are")
    ask(engine, CHAT, add_generation_prompt=False)
    assert begun.startswith(prompt(engine))
    assert len(prompt(engine)) < len(begun)


def test_a_message_of_the_assistant_at_the_end_is_continued(engine: FakeEngine) -> None:
    blocks = [{"type": "text", "text": "Roses"}, {"type": "text", "text": " are"}]
    for content in ("Roses are", blocks):
        turns = [TURNS[0], {"role": "assistant", "content": content}]
        answer = ask(engine, MESSAGES, turns)
        assert answer.json()["content"] == [{"type": "text", "text": engine.reply}]
        assert prompt(engine).endswith("Roses are")
    count = call(
        engine, "POST", "/v1/messages/count_tokens", json={"model": NAME, "messages": TURNS}
    ).json()
    assert count["input_tokens"] == len(engine.submissions[-1].request.prompt_token_ids)


def test_what_cannot_be_continued_is_refused_by_name(engine: FakeEngine) -> None:
    call_of_tool = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (TURNS[:1], {"continue_final_message": True}, "continue_final_message"),
        ([TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call_of_tool]}],
         {"continue_final_message": True}, "continue_final_message"),
        ([TURNS[0], {"role": "assistant", "content": ""}], {"continue_final_message": True},
         "continue_final_message"),
        (TURNS, {"continue_final_message": True, "add_generation_prompt": True},
         "add_generation_prompt"),
    ]  # fmt: skip
    for messages, fields, param in cases:
        response = ask(engine, CHAT, messages, **fields)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    for content in ("", [], [use]):
        turns = [TURNS[0], {"role": "assistant", "content": content}]
        response = ask(engine, MESSAGES, turns)
        assert response.status_code == 400, response.text
        assert "last message" in response.json()["error"]["message"]


def test_tokenize_ends_a_prompt_as_a_chat_does(engine: FakeEngine) -> None:
    for fields in ({}, {"add_generation_prompt": False}, {"continue_final_message": True}):
        ask(engine, CHAT, **fields)
        tokens = call(engine, "POST", "/tokenize", json={"messages": TURNS, **fields}).json()
        assert tokens["tokens"] == list(engine.submissions[-1].request.prompt_token_ids)
