"""/v1/responses with the official openai client, over an engine that replies what it was told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from loire.server.openai.responses.store import (
    MAX_AGE_S,
    MAX_CHARACTERS,
    ResponseStore,
    StoredResponse,
)
from support.fake_engine import NAME, FakeEngine, call, serving

WINDOW = 4096
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Tours"}}\n</tool_call>'
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@contextmanager
def talking(engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with (
        serving(engine) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, "Hé €!", window=WINDOW)


@pytest.fixture
def caller(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, CALL, window=WINDOW)


def test_response(engine: FakeEngine) -> None:
    with talking(engine) as client:
        response = client.responses.create(
            model=NAME, input="hi", instructions="be brief", metadata={"a": "b"}
        )
    assert response.output_text == "Hé €!"
    assert (response.status, response.error, response.incomplete_details) == (
        "completed",
        None,
        None,
    )
    assert response.metadata == {"a": "b"}
    assert response.usage is not None
    assert response.usage.output_tokens == 8
    prompt = engine.submissions[0].prompt or ""
    assert prompt.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<")


def test_streamed_response_is_the_same(engine: FakeEngine) -> None:
    with talking(engine) as client, client.responses.stream(model=NAME, input="hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "Hé €!"
    assert [event.type for event in events][:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert events[-1].type == "response.completed"
    raw = call(engine, "POST", "/v1/responses", json={"model": NAME, "input": "hi", "stream": True})
    assert "[DONE]" not in raw.text
    numbers = [line.split('"sequence_number": ')[1] for line in raw.text.split("\n\n") if line]
    assert [int(number.split(",")[0].rstrip("}")) for number in numbers] == list(
        range(len(numbers))
    )


def test_length_makes_it_incomplete(engine: FakeEngine) -> None:
    with talking(engine) as client:
        response = client.responses.create(model=NAME, input="hi", max_output_tokens=2)
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        with client.responses.stream(model=NAME, input="hi", max_output_tokens=2) as stream:
            assert [event.type for event in stream][-1] == "response.incomplete"


def test_calls_and_their_results(caller: FakeEngine) -> None:
    with talking(caller) as client:
        response = client.responses.create(model=NAME, input="hi", tools=[TOOL])
        [made] = response.output
        assert made.type == "function_call"
        assert (made.name, made.arguments) == ("weather", '{"city": "Tours"}')
        result: Any = [{"type": "function_call_output", "call_id": made.call_id, "output": "sunny"}]
        client.responses.create(
            model=NAME, input=result, tools=[TOOL], previous_response_id=response.id
        )
        with client.responses.stream(model=NAME, input="hi", tools=[TOOL]) as stream:
            kinds = [event.type for event in stream]
            [streamed] = stream.get_final_response().output
    prompt = caller.submissions[1].prompt or ""
    assert prompt.index("hi<|im_end|>") < prompt.index('"Tours"') < prompt.index("sunny")
    assert streamed.type == "function_call"
    assert streamed.arguments == made.arguments
    assert "response.function_call_arguments.done" in kinds


def test_going_on_retrieving_and_deleting(engine: FakeEngine) -> None:
    with talking(engine) as client:
        first = client.responses.create(model=NAME, input="one", instructions="once")
        second = client.responses.create(model=NAME, input="two", previous_response_id=first.id)
        assert client.responses.retrieve(second.id).output_text == "Hé €!"
        assert second.previous_response_id == first.id
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError, match="to go on from"):
            client.responses.create(model=NAME, input="x", previous_response_id=first.id)
        kept = client.responses.create(model=NAME, input="three", previous_response_id=second.id)
        unkept = client.responses.create(model=NAME, input="x", store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(unkept.id)
        with pytest.raises(openai.BadRequestError, match="background"):
            client.responses.cancel(kept.id)
    prompt = engine.submissions[2].prompt or ""
    said = [prompt.index(text) for text in ("one<", "Hé €!<", "two<", "three<")]
    assert said == sorted(said)
    assert "once" in (engine.submissions[0].prompt or "")
    assert "once" not in (engine.submissions[1].prompt or "")


def test_json_schema_reaches_the_engine(engine: FakeEngine) -> None:
    form: Any = {"type": "json_schema", "name": "s", "schema": {"type": "object"}}
    with talking(engine) as client:
        client.responses.create(model=NAME, input="hi", text={"format": form})
    spec = engine.submissions[0].request.params.structured_outputs
    assert spec is not None
    assert spec.kind == "json"


def test_messages_thoughts_and_developers(engine: FakeEngine) -> None:
    items: Any = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "b", "annotations": []}],
        },
        {"role": "user", "content": "c"},
    ]
    with talking(engine) as client:
        client.responses.create(model=NAME, input=items)
    prompt = engine.submissions[0].prompt or ""
    assert "<|im_start|>system\nbe kind" in prompt
    assert "<|im_start|>assistant\nb<" in prompt


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id", "no item 'x'"),
        ({"input": [{"type": "dance", "id": "x"}]}, "input[0].type", "dance"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "input_image",
        ),
        ({"background": True}, "background", "while the client waits"),
        ({"truncation": "never"}, "truncation", "disabled"),
        ({"reasoning": {"effort": "loud"}}, "reasoning.effort", "'loud'"),
        ({"include": ["message.output_text.logprobs"]}, "include", "chat route"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"tool_choice": "required"}, "tool_choice", "no 'tools'"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "needs"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
            "text.format.schema",
            "type",
        ),
        ({"max_output_tokens": 5000}, "max_output_tokens", "5000"),
        ({"unheard_of": 1}, "unheard_of", "unknown"),
    ],
)
def test_mistakes_are_named(
    engine: FakeEngine, fields: dict[str, Any], param: str, words: str
) -> None:
    response = call(engine, "POST", "/v1/responses", json={"model": NAME, "input": "hi", **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert words in error["message"]


def test_store_is_bounded_and_each_tenants_own() -> None:
    now = 0.0
    store = ResponseStore(lambda: now)

    def put(name: str, tenant: str = "a", size: int = 1) -> None:
        store.put(name, StoredResponse(tenant, "{}", (), size, now))

    put("1")
    assert store.get("1", "a") is not None
    assert store.get("1", "b") is None
    assert not store.delete("1", "b")
    put("2", size=MAX_CHARACTERS - 1)
    assert len(store) == 2
    put("3")
    assert store.get("1", "a") is None
    now = MAX_AGE_S + 1.0
    assert store.get("3", "a") is None
    assert len(store) == 0
