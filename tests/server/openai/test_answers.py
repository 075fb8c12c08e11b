"""What the routes answer, over an engine that replies what it was told to."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from loire.base.structured_outputs import OUTGROWN
from loire.server.openai.chat_protocol import ChatCompletion, ChatCompletionChunk
from loire.server.openai.completions_protocol import Completion, CompletionChunk
from support.fake_engine import (
    DEATH,
    NAME,
    WINDOW,
    Connection,
    FakeEngine,
    app_over,
    ask,
    call,
    events,
    run,
)

CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": NAME, "prompt": "hi"}
REPLY = "Hé €!"
USAGE = {"include_usage": True}


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, REPLY)


def post(engine: FakeEngine | None, path: str, body: dict[str, Any], **fields: Any) -> Any:
    return call(engine, "POST", f"/v1/{path}", json={**body, **fields})


def test_chat(engine: FakeEngine) -> None:
    body = post(engine, "chat/completions", CHAT, n=2).json()
    ChatCompletion.model_validate(body)
    assert [choice["message"]["content"] for choice in body["choices"]] == [REPLY, REPLY]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert {choice["finish_reason"] for choice in body["choices"]} == {"stop"}
    prompt, completion = len(engine.submissions[0].request.prompt_token_ids), 2 * 8
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    assert body["model"] == NAME
    assert engine.running == []


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", TEXT)])
def test_priority_reaches_the_engine(engine: FakeEngine, path: str, body: dict[str, Any]) -> None:
    post(engine, path, body, priority=-3)
    post(engine, path, body)
    assert [submission.request.priority for submission in engine.submissions] == [-3, 0]


def test_streamed_chat_is_the_same(engine: FakeEngine) -> None:
    response = post(engine, "chat/completions", CHAT, n=2, stream=True, stream_options=USAGE)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events(response)
    assert done == "[DONE]"
    for chunk in (*chunks, last):
        ChatCompletionChunk.model_validate(chunk)
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 16
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in own) == REPLY
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]


def test_stream_without_usage_does_not_mention_it(engine: FakeEngine) -> None:
    *chunks, done = events(post(engine, "chat/completions", CHAT, stream=True))
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)


def test_tokens_that_arrive_together_are_one_event(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama, REPLY, at_once=True)
    role, rest, done = events(post(engine, "chat/completions", CHAT, stream=True))
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert rest["choices"][0]["delta"] == {"content": REPLY}
    assert rest["choices"][0]["finish_reason"] == "stop"
    assert done == "[DONE]"


def test_chat_logprobs(engine: FakeEngine) -> None:
    fields = {"logprobs": True, "top_logprobs": 2}
    whole = post(engine, "chat/completions", CHAT, **fields).json()
    content = whole["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == REPLY
    first = content[0]
    assert (first["token"], first["logprob"], first["bytes"]) == ("H", -1.0, [72])
    assert [(top["token"], top["logprob"]) for top in first["top_logprobs"]] == [
        ("I", -0.5),
        ("H", -1.0),
    ]
    streamed = events(post(engine, "chat/completions", CHAT, stream=True, **fields))[:-1]
    pieces = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == content
    plain = post(engine, "chat/completions", CHAT).json()
    assert plain["choices"][0]["logprobs"] is None


def test_impossible_tokens_have_a_logprob_that_json_can_write(engine: FakeEngine) -> None:
    body = post(engine, "chat/completions", CHAT, logprobs=True, top_logprobs=3).json()
    tops = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert [top["logprob"] for top in tops] == [-0.5, -1.0, -9999.0]


def test_list_of_prompts(engine: FakeEngine) -> None:
    ids = engine.frontend.tokenizer.encode("cd")
    for prompts in (["ab", "cd"], [engine.frontend.tokenizer.encode("ab"), ids]):
        body = post(engine, "completions", TEXT, prompt=prompts, n=2, echo=True).json()
        Completion.model_validate(body)
        assert [(c["index"], c["text"]) for c in body["choices"]] == [
            (0, f"ab{REPLY}"),
            (1, f"ab{REPLY}"),
            (2, f"cd{REPLY}"),
            (3, f"cd{REPLY}"),
        ]
        assert body["usage"]["prompt_tokens"] == 4
        assert body["usage"]["completion_tokens"] == 4 * 8
    single = post(engine, "completions", TEXT, prompt=ids, echo=True).json()
    assert [choice["text"] for choice in single["choices"]] == [f"cd{REPLY}"]


@pytest.mark.parametrize("echo", [True, False])
def test_completion_logprobs(engine: FakeEngine, echo: bool) -> None:
    fields = {"logprobs": 1, "echo": echo}
    [choice] = post(engine, "completions", TEXT, **fields).json()["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == ("hi" if echo else "") + REPLY
    # é is two tokens and € three; each begins where its character will stand.
    after = [0, 1, 1, 2, 3, 3, 3, 4]
    tokens = ["H", "bytes:\\xc3", "bytes:\\xa9", " ", *(f"bytes:\\x{b:02x}" for b in "€".encode())]
    tokens.append("!")
    if echo:
        assert logprobs["tokens"] == ["h", "i", *tokens]
        assert logprobs["token_logprobs"] == [None, -1.0, *[-1.0] * 8]
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["text_offset"] == [0, 1, *(offset + 2 for offset in after)]
    else:
        assert logprobs["tokens"] == tokens
        assert logprobs["text_offset"] == after
    assert logprobs["top_logprobs"][-1] == {'"': -0.5, "!": -1.0}
    *streamed, _ = events(post(engine, "completions", TEXT, stream=True, **fields))
    pieces = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    for key in logprobs:
        assert [entry for piece in pieces for entry in piece[key]] == logprobs[key]


def test_logprobs_zero_tells_of_the_chosen_token_only(engine: FakeEngine) -> None:
    [choice] = post(engine, "completions", TEXT, logprobs=0).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-1.0] * 8
    assert choice["logprobs"]["top_logprobs"] is None


@pytest.mark.parametrize("stream", [True, False])
def test_prompt_alone_is_scored(engine: FakeEngine, stream: bool) -> None:
    """max_tokens = 0 with echo: log-probabilities of the prompt, and nothing else."""
    fields = {"max_tokens": 0, "echo": True, "logprobs": 1, "stream": stream}
    response = post(engine, "completions", TEXT, **fields)
    [body, *rest] = events(response) if stream else [response.json()]
    assert rest == (["[DONE]"] if stream else [])
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")
    assert choice["logprobs"]["tokens"] == ["h", "i"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0]
    if not stream:
        assert body["usage"]["completion_tokens"] == 0


def test_streamed_completions_of_many_prompts(engine: FakeEngine) -> None:
    *chunks, last, _ = events(
        post(engine, "completions", TEXT, prompt=["ab", "cd"], stream=True, stream_options=USAGE)
    )
    for chunk in chunks:
        CompletionChunk.model_validate(chunk)
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == REPLY
        assert own[-1]["finish_reason"] == "stop"
    assert last["usage"]["total_tokens"] == 4 + 16


def test_length_is_told(engine: FakeEngine) -> None:
    [choice] = post(engine, "completions", TEXT, max_tokens=1).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("H", "length")


def test_models(engine: FakeEngine) -> None:
    app = app_over(engine)  # one, because it says when it was started
    listed = ask(app, "GET", "/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [NAME, "alias/of-it"]
    one = ask(app, "GET", "/v1/models/alias/of-it").json()
    assert one == listed["data"][1]
    assert (one["object"], one["max_model_len"]) == ("model", WINDOW)
    body = post(engine, "chat/completions", CHAT, model="alias/of-it").json()
    assert body["model"] == "alias/of-it"


def test_health(engine: FakeEngine) -> None:
    loading = call(None, "GET", "/health")
    assert (loading.status_code, loading.json()["status"]) == (503, "loading")
    response = call(engine, "GET", "/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "num_requests": 0})
    engine.alive = False
    stopped = call(engine, "GET", "/health")
    assert (stopped.status_code, stopped.json()["status"]) == (503, "stopped")


def test_requests_are_refused_while_loading_and_after_the_end(engine: FakeEngine) -> None:
    response = post(None, "chat/completions", CHAT)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "loading"
    engine.alive = False
    response = post(engine, "completions", TEXT)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_stopped"


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (503, "for the test", "server_error"),
        (500, "logits are not finite", "server_error"),
        (400, OUTGROWN, "invalid_request_error"),
    ],
)
def test_failure_of_the_engine(engine: FakeEngine, status: int, words: str, kind: str) -> None:
    death = status == 503
    if death:
        engine.death = DEATH
    else:
        engine.failure = words
    response = post(engine, "chat/completions", CHAT)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    assert response.headers.get("x-should-retry") == (None if death else "false")
    # A stream has its status already: the error is its last event, and no [DONE] pretends.
    *chunks, last = events(post(engine, "chat/completions", CHAT, stream=True))
    assert chunks
    assert words in last["error"]["message"]
    assert last["error"]["type"] == kind
    assert engine.running == []


def test_one_failing_prompt_ends_its_siblings(engine: FakeEngine) -> None:
    engine.death = DEATH
    assert post(engine, "completions", TEXT, prompt=["a", "b", "c"]).status_code == 503
    assert engine.running == []


def test_internal_error_is_a_500_that_tells_no_internals(engine: FakeEngine) -> None:
    engine.death = ZeroDivisionError("a secret")
    response = post(engine, "chat/completions", CHAT)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("where", ["in the queue", "halfway"])
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_disconnect_ends_the_request(
    tiny_llama: Path, stream: bool, where: str, route: str
) -> None:
    async def test() -> None:
        engine = FakeEngine(tiny_llama)
        if where == "in the queue":
            engine.gate = asyncio.Event()
        else:
            engine.pause = asyncio.Event()
        body = {**(CHAT if route.startswith("chat") else TEXT), "stream": stream}
        connection = Connection(engine, f"/v1/{route}", body)
        handling = asyncio.create_task(connection.run())
        await engine.began.wait()
        if stream and where == "halfway":
            await connection.wrote.wait()
        assert engine.num_requests == 1
        connection.gone.set()
        await handling
        assert engine.num_requests == 0

    run(test)


def test_shutdown_stops_the_engine(engine: FakeEngine) -> None:
    from loire.server.host.app import create_app
    from loire.server.serving.served import ServedModel

    async def test() -> None:
        app = create_app(ServedModel([NAME], engine))
        async with app.router.lifespan_context(app):
            assert not engine.closed
        assert engine.closed

    run(test)


def test_api_description_is_complete(engine: FakeEngine) -> None:
    description = call(engine, "GET", "/openapi.json").json()
    for path in ("/v1/chat/completions", "/v1/completions"):
        operation = description["paths"][path]["post"]
        assert set(operation["responses"]) == {"200", "4XX", "5XX"}
        assert set(operation["responses"]["200"]["content"]) == {
            "application/json",
            "text/event-stream",
        }
    schemas = description["components"]["schemas"]
    assert schemas["ChatCompletionRequest"]["additionalProperties"] is False
    assert "functions" not in schemas["ChatCompletionRequest"]["properties"]
    assert "$defs" not in str(description)
