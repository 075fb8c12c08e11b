"""The official anthropic client against the app, over an engine that replies what it was told."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import pytest

from support.fake_engine import NAME, FakeEngine, call, serving

WINDOW = 4096
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Tours"}}\n</tool_call>'
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
ASK: Any = {"model": NAME, "max_tokens": 200, "messages": [{"role": "user", "content": "hi"}]}


@contextmanager
def talking(engine: FakeEngine) -> Iterator[anthropic.Anthropic]:
    """A client of the app."""
    with (
        serving(engine) as url,
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


def create(engine: FakeEngine, **fields: Any) -> Any:
    with talking(engine) as client:
        return client.messages.create(**{**ASK, **fields})


def streamed(engine: FakeEngine, **fields: Any) -> tuple[Any, list[str]]:
    """The message that the client puts together, and the types of the events."""
    with talking(engine) as client, client.messages.stream(**{**ASK, **fields}) as stream:
        kinds = [event.type for event in stream]
        return stream.get_final_message(), kinds


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, "Hé €!", window=WINDOW)


@pytest.fixture
def caller(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, CALL, window=WINDOW)


def test_message(engine: FakeEngine) -> None:
    message = create(engine, system="be brief")
    assert [block.text for block in message.content] == ["Hé €!"]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.role == "assistant"
    prompt = engine.submissions[0].request.prompt_token_ids
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(prompt)
    assert usage.output_tokens == 8
    assert "<|im_start|>system\nbe brief<|im_end|>" in (engine.submissions[0].prompt or "")


def test_streamed_message_is_the_same(engine: FakeEngine) -> None:
    message, kinds = streamed(engine)
    assert [block.text for block in message.content] == ["Hé €!"]
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 8
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1


def test_length_and_stop_sequences(engine: FakeEngine) -> None:
    assert create(engine, max_tokens=2).stop_reason == "max_tokens"
    message = create(engine, stop_sequences=["€"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "€")
    assert message.content[0].text == "Hé "
    message, _ = streamed(engine, stop_sequences=["€"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "€")


def test_tool_use(caller: FakeEngine) -> None:
    message = create(caller, tools=[TOOL])
    [block] = message.content
    assert (block.type, block.name, block.input) == ("tool_use", "weather", {"city": "Tours"})
    assert message.stop_reason == "tool_use"
    message, kinds = streamed(caller, tools=[TOOL])
    [block] = message.content
    assert (block.name, block.input) == ("weather", {"city": "Tours"})
    assert message.stop_reason == "tool_use"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1


def test_cut_call_keeps_its_text(caller: FakeEngine) -> None:
    [block] = create(caller, tools=[TOOL], max_tokens=60).content
    assert block.type == "tool_use"
    assert CALL.find(block.input["INVALID_JSON"]) > 0


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_calls_can_be_required(caller: FakeEngine, choice: Any) -> None:
    create(caller, tools=[TOOL], tool_choice=choice)
    spec = caller.submissions[0].request.params.structured_outputs
    assert spec is not None
    assert spec.grammar is not None


def test_choice_none_offers_nothing(caller: FakeEngine) -> None:
    assert create(caller, tools=[TOOL], tool_choice={"type": "none"}).content[0].text == CALL


def test_results_and_thoughts_reach_the_template(engine: FakeEngine) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Tours"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "sunny"},
                {"type": "text", "text": "And tomorrow?"},
            ],
        },
    ]
    create(engine, messages=messages, tools=[TOOL])
    prompt = engine.submissions[0].prompt or ""
    assert '"arguments": {"city": "Tours"}' in prompt
    assert prompt.index("Let me see.") < prompt.index("sunny") < prompt.index("And tomorrow?")


def test_count_tokens(engine: FakeEngine) -> None:
    fields = {key: value for key, value in ASK.items() if key != "max_tokens"}
    with talking(engine) as client:
        count = client.messages.count_tokens(**fields, tools=[TOOL])
    create(engine, tools=[TOOL])
    assert count.input_tokens == len(engine.submissions[0].request.prompt_token_ids)


def test_accepted_without_effect(engine: FakeEngine) -> None:
    cached: Any = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]
    message = create(
        engine,
        metadata={"user_id": "u"},
        service_tier="auto",
        system=cached,
        thinking={"type": "disabled"},
        extra_headers={"anthropic-beta": "anything"},
    )
    assert message.content[0].text == "Hé €!"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 1.5}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "last message"),
        ({"messages": [{"role": "king", "content": "x"}]}, "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "'image'",
        ),
        ({"thinking": {"type": "loud"}}, "thinking"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124'"),
        ({"tools": [TOOL, TOOL]}, "'weather'"),
        ({"tool_choice": {"type": "any"}}, "no 'tools'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "'x'"),
        ({"container": "c"}, "'container'"),
        ({"unheard_of": 1}, "'unheard_of'"),
    ],
)
def test_mistakes_are_named_in_its_form(
    engine: FakeEngine, fields: dict[str, Any], words: str
) -> None:
    response = call(engine, "POST", "/v1/messages", json={**ASK, **fields})
    assert response.status_code == 400, response.text
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert words in body["error"]["message"]


def test_unknown_model_is_not_found(engine: FakeEngine) -> None:
    with pytest.raises(anthropic.NotFoundError):
        create(engine, model="other")


def test_failure_in_a_stream_is_an_event(engine: FakeEngine) -> None:
    engine.failure = "it broke"
    response = call(engine, "POST", "/v1/messages", json={**ASK, "stream": True})
    last = response.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n")
    assert "it broke" in json.loads(last.split("data: ")[1])["error"]["message"]


def test_tokenize_and_back(engine: FakeEngine) -> None:
    found = call(engine, "POST", "/tokenize", json={"prompt": "Hé", "return_token_strs": True})
    body = found.json()
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"]) == 3
    assert body["max_model_len"] == WINDOW
    back = call(engine, "POST", "/detokenize", json={"tokens": body["tokens"]})
    assert back.json() == {"prompt": "Hé"}
    chat = call(engine, "POST", "/tokenize", json={"messages": ASK["messages"]}).json()
    create(engine)
    assert tuple(chat["tokens"]) == engine.submissions[0].request.prompt_token_ids


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "either"),
        ("/tokenize", {"prompt": "x", "messages": ASK["messages"]}, "either"),
        ("/tokenize", {"prompt": "x", "model": "other"}, "other"),
        ("/detokenize", {"tokens": [99999]}, "99999"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
    ],
)
def test_mistakes_of_tokenize(
    engine: FakeEngine, path: str, body: dict[str, Any], words: str
) -> None:
    response = call(engine, "POST", path, json=body)
    assert response.status_code in {400, 404}
    assert words in response.json()["error"]["message"]
