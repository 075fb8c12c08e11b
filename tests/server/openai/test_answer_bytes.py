"""Answers are bounded, however much larger than what asks for them, and written beside the loop."""

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from loire.server.host.app import create_app
from loire.server.openai import answers
from loire.server.openai.chat_protocol import ChatCompletion
from loire.server.openai.completions_protocol import Completion
from loire.server.serving import answer_bytes
from loire.server.serving.answer_bytes import HeldAnswer, HeldAnswers
from loire.server.serving.served import ServedModel
from loire.server.web import json_answer
from loire.server.web.errors import ApiError
from support.fake_engine import NAME, Connection, FakeEngine, events, run

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = [[5] * 1_500]
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, "Hello there, \u2028 how are you?", at_once=True, window=2048)


def asked(engine: FakeEngine, path: str, **fields: Any) -> tuple[httpx.Response, ServedModel]:
    """The answer, and the model behind it, whose answers then hold nothing."""
    served = ServedModel([NAME], engine)
    base: dict[str, Any] = {"messages": USER} if path == CHAT else {"prompt": LONG}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(served), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, json={"model": NAME, **base, **fields})

    response = asyncio.run(send())
    assert served.held_answers.num_bytes == 0
    assert not served.held_answers._of
    return response, served


@pytest.mark.parametrize(
    ("path", "fields", "param", "words"),
    [
        (TEXT, {"n": 128, "prompt_logprobs": 20}, "prompt_logprobs", "1,500 prompt tokens, 128"),
        (TEXT, {"n": 64, "echo": True, "logprobs": 20}, "logprobs", "1,500 prompt tokens, 64"),
        (TEXT, {"prompt": LONG * 40, "prompt_logprobs": 20}, "prompt_logprobs", "60,000 prompt"),
        (TEXT, {"n": 128, "max_tokens": 500, "logprobs": 20}, "logprobs", "64,000 tokens"),
        (TEXT, {"prompt": LONG * 16, "n": 128, "echo": True}, "echo", "characters of prompts"),
        (
            CHAT,
            {"n": 128, "max_tokens": 500, "logprobs": True, "top_logprobs": 20},
            "top_logprobs",
            "21 log-probabilities of each of up to 64,000 tokens",
        ),
    ],
)
def test_products_of_parameters_are_refused_before_they_cost(
    engine: FakeEngine, path: str, fields: dict[str, Any], param: str, words: str
) -> None:
    before = len(engine.submissions)
    error = asked(engine, path, **fields)[0].json()["error"]
    assert error["param"] == param, error
    assert words in error["message"]
    assert "256 MB" in error["message"]
    assert len(engine.submissions) == before


def test_what_fits_is_answered_whatever_its_parts(engine: FakeEngine) -> None:
    for fields in ({"prompt_logprobs": 20}, {"n": 128, "prompt_logprobs": 0, "max_tokens": 1}):
        assert asked(engine, TEXT, **fields)[0].status_code == 200


def test_what_cannot_be_known_before_is_counted_while_it_comes(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = {"logprobs": True, "top_logprobs": 2}
    assert asked(engine, CHAT, **asks)[0].status_code == 200
    num_tokens = len(engine.frontend.tokenizer.encode(engine.reply))
    most = (2 * num_tokens - 1) * answer_bytes.LOGPROB_BYTES
    monkeypatch.setattr(answer_bytes, "MAX_OF_ANSWER", most)
    response = asked(engine, CHAT, **asks)[0]
    assert (response.status_code, response.json()["error"]["code"]) == (400, "answer_too_large")
    assert not engine.running
    # A stream that is read holds a step's at a time.
    engine.at_once = False
    try:
        *chunks, done = events(asked(engine, CHAT, **asks, stream=True)[0])
    finally:
        engine.at_once = True
    assert done == "[DONE]"
    shown = [p for chunk in chunks for c in chunk["choices"] for p in (c["logprobs"] or {})]
    assert len(shown) >= num_tokens
    assert asked(engine, CHAT)[0].status_code == 200


def test_a_client_that_goes_leaves_nothing_behind(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama)
    engine.pause = asyncio.Event()
    body = {"model": NAME, "prompt": "one two three", "prompt_logprobs": 3, "logprobs": 3}

    async def test() -> None:
        connection = Connection(engine, TEXT, body)
        held = connection.app.state.served.held_answers
        calling = asyncio.create_task(connection.run())
        while not held.num_bytes:
            await asyncio.sleep(0.001)
        connection.gone.set()
        await calling
        assert held.num_bytes == 0

    run(test)


def test_whoever_holds_more_than_others_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_bytes, "MAX_OF_ALL", 100)
    everybody = HeldAnswers()
    greedy, modest = HeldAnswer(everybody, "greedy"), HeldAnswer(everybody, "modest")
    greedy.add(90)
    modest.add(40)  # beyond all that may be held, but no more than its part
    for tenant in (greedy, HeldAnswer(everybody, "greedy")):
        with pytest.raises(ApiError) as refused:
            tenant.add(1)
        assert (refused.value.status, refused.value.code) == (429, "answers_too_large")
    with pytest.raises(ApiError):
        modest.add(20)
    greedy.end()
    modest.add(20)
    modest.take(10)
    assert (everybody.num_bytes, dict(everybody._of)) == (50, {"modest": 50})
    modest.end()
    assert (everybody.num_bytes, dict(everybody._of)) == (0, {})


@pytest.mark.parametrize(
    ("path", "fields", "model"),
    [
        (TEXT, {"prompt_logprobs": 2, "echo": True, "logprobs": 2, "n": 2}, Completion),
        (TEXT, {"prompt": ["a", "b"], "return_token_ids": True}, Completion),
        (CHAT, {"prompt_logprobs": 2, "logprobs": True, "top_logprobs": 2}, ChatCompletion),
        (CHAT, {"return_token_ids": True, "n": 2}, ChatCompletion),
    ],
)
def test_large_answers_are_those_of_small_ones_but_beside_the_loop(
    engine: FakeEngine,
    path: str,
    fields: dict[str, Any],
    model: type[BaseModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrote: list[bool] = []
    write = json_answer.written

    def noted(value: Mapping[str, Any]) -> str:
        wrote.append(threading.current_thread() is threading.main_thread())
        return write(value)

    monkeypatch.setattr(answers, "written", noted)
    if "prompt" not in fields and path == TEXT:
        fields = {"prompt": "one two three", **fields}
    small = asked(engine, path, **fields)[0]
    monkeypatch.setattr(answers, "SMALL_ANSWER", 0)
    monkeypatch.setattr(json_answer, "SENT_BYTES", 100)
    large = asked(engine, path, **fields)[0]
    assert wrote == [True, False]
    assert small.status_code == large.status_code == 200
    assert int(large.headers["content-length"]) == len(large.content)
    for name in ("choices", "usage", "prompt_logprobs", "prompt_token_ids"):
        assert small.json().get(name) == large.json().get(name)
    model.model_validate(large.json())
    if path == CHAT or "prompt_logprobs" in fields:
        return
    fields = {**fields, "stream": True, "echo": True, "logprobs": 1}
    streamed = [events(asked(engine, path, **fields)[0])]
    monkeypatch.setattr(answers, "SMALL_ANSWER", 10_000)
    streamed.append(events(asked(engine, path, **fields)[0]))
    ours = [[c["choices"] for c in chunks if c != "[DONE]"] for chunks in streamed]
    assert ours[0] == ours[1]


def test_an_iterator_is_written_as_a_list() -> None:
    value = {"a": iter([1, {"b": iter(()), "c": "\u2028\u00e9"}]), "d": {"e": iter([None])}}
    assert json_answer.written(value) == '{"a":[1,{"b":[],"c":"\u2028\u00e9"}],"d":{"e":[null]}}'
    assert json_answer.written({"plain": [1.5, "x"]}) == '{"plain":[1.5,"x"]}'
