"""/v1/responses with the official openai client, over an engine that replies what it was told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI

from loire.server.host.app import create_app
from loire.server.openai.responses.store import (
    MAX_AGE_S,
    ResponseStore,
    StoredResponse,
)
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine, ask, call, serving

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


def test_no_tenant_pushes_out_what_others_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loire.server.openai.responses.store.MAX_TENANT_BYTES", 10_000)
    monkeypatch.setattr("loire.server.openai.responses.store.MAX_BYTES", 25_000)
    store = ResponseStore()
    store.put("mine", StoredResponse("light", "x", ()))
    for number in range(40):
        store.put(f"greedy-{number}", StoredResponse("greedy", "x" * 3_000, ()))
    assert store.body("mine", "light") is not None
    kept = [number for number in range(40) if store.body(f"greedy-{number}", "greedy")]
    assert kept == [37, 38, 39]
    # All together are bounded, too: then the oldest goes.
    for tenant in ("b", "c"):
        for number in range(3):
            store.put(f"{tenant}-{number}", StoredResponse(tenant, "x" * 3_000, ()))
    assert store.body("mine", "light") is None
    assert store.body("c-2", "c") is not None


def test_store_is_bounded_and_each_tenants_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loire.server.openai.responses.store.MAX_TENANT_BYTES", 10_000)
    now = 0.0
    store = ResponseStore(clock=lambda: now)

    def put(name: str, tenant: str = "a", size: int = 1) -> None:
        store.put(name, StoredResponse(tenant, "x" * size, (), {f"item-{name}": {"of": name}}))

    put("1")
    assert store.body("1", "a") is not None
    assert store.body("1", "b") is None
    assert not store.delete("1", "b")
    assert store.items(["item-1", "item-2"], "a") == {"item-1": {"of": "1"}}
    assert store.items(["item-1"], "b") == {}
    put("2", size=9_500)
    assert store.body("1", "a") is not None
    put("3", size=1_000)
    assert (store.body("1", "a"), store.body("2", "a")) == (None, None)
    assert store.items(["item-1"], "a") == {}
    put("4")
    assert store.delete("4", "a")
    assert (store.body("4", "a"), store.items(["item-4"], "a")) == (None, {})
    now = MAX_AGE_S + 1.0
    assert store.body("3", "a") is None
    put("5", size=500)
    assert store._database.read("SELECT id FROM responses") == [("5",)]
    assert store._database.read("SELECT id FROM items") == [("item-5",)]


def test_a_response_is_read_once_for_all_references_to_it(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(ServedModel([NAME], engine), data_dir=tmp_path / "data")

    def create(**fields: Any) -> Any:
        return ask(app, "POST", "/v1/responses", json={"model": NAME, **fields}).json()

    [item] = create(input="hi")["output"]
    finds: list[str] = []
    find = ResponseStore._find

    def counted(store: ResponseStore, column: str, wanted: str, *more: str) -> Any:
        finds.append(wanted)
        return find(store, column, wanted, *more)

    monkeypatch.setattr(ResponseStore, "_find", counted)
    reference = {"type": "item_reference", "id": item["id"]}
    assert create(input=[reference] * 50)["status"] == "completed"
    assert finds == [item["id"]]
    store = ResponseStore()
    store.put("r", StoredResponse("a", "x", (), {f"i{n}": {"of": str(n)} for n in range(20)}))
    finds.clear()
    assert len(store.items([f"i{n}" for n in range(20)], "a")) == 20
    assert len(finds) == 1


def test_responses_survive_a_restart(engine: FakeEngine, tmp_path: Path) -> None:
    def app() -> FastAPI:
        return create_app(ServedModel([NAME], engine), data_dir=tmp_path / "data")

    first = ask(app(), "POST", "/v1/responses", json={"model": NAME, "input": "hi"}).json()
    again = app()
    path = f"/v1/responses/{first['id']}"
    assert ask(again, "GET", path).json() == first
    more = {"model": NAME, "input": "more", "previous_response_id": first["id"]}
    assert ask(again, "POST", "/v1/responses", json=more).status_code == 200
    prompt = engine.submissions[-1].prompt
    assert prompt is not None
    assert "hi" in prompt
    assert first["output"][0]["content"][0]["text"] in prompt
    assert ask(app(), "DELETE", path).status_code == 200  # by a server beside it
    assert ask(again, "GET", path).status_code == 404


def test_nothing_is_kept_that_should_not_be(engine: FakeEngine, tmp_path: Path) -> None:
    app = create_app(ServedModel([NAME], engine), data_dir=tmp_path / "data")
    body = {"model": NAME, "input": "hi", "store": False}
    assert ask(app, "POST", "/v1/responses", json=body).status_code == 200
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_used_keeps_no_answer_back(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_bytes(b"no folder")
    app = create_app(ServedModel([NAME], engine), data_dir=tmp_path / "data")
    answer = ask(app, "POST", "/v1/responses", json={"model": NAME, "input": "hi"})
    assert answer.status_code == 200
    assert "in memory only" in caplog.text
    assert ask(app, "GET", f"/v1/responses/{answer.json()['id']}").json() == answer.json()
