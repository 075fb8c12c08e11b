"""Large bodies are refused before they cost, or read beside the event loop."""

import asyncio
import gzip
import json
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from loire.engine import frontend
from loire.server.anthropic.request import MessagesRequest
from loire.server.openai.chat_protocol import ChatCompletionRequest
from loire.server.openai.responses.request import ResponsesRequest
from loire.server.openai.tools_protocol import FunctionDefinition
from loire.server.web import json_body
from loire.server.web.json_body import MAX_ESCAPES, MAX_LISTS, MAX_STRINGS, MAX_VALUES
from support.fake_engine import NAME, FakeEngine, app_over, call

CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"
WINDOW = 2048
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, window=WINDOW)


def send(engine: FakeEngine, body: bytes, path: str = PATH, **headers: str) -> httpx.Response:
    sent = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return call(engine, "POST", path, content=body, headers=sent)


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_bodies_are_read(engine: FakeEngine, encoding: str, pack: Any) -> None:
    packed = pack(json.dumps(CHAT).encode())
    assert send(engine, packed, content_encoding=encoding).status_code == 200
    cut = send(engine, packed[:-9], content_encoding=encoding)
    assert (cut.status_code, encoding in cut.text) == (400, True)
    plain = send(engine, json.dumps(CHAT).encode(), content_encoding=encoding)
    assert (plain.status_code, encoding in plain.text) == (400, True)


def test_other_encodings_are_named(engine: FakeEngine) -> None:
    response = send(engine, b"x", content_encoding="br")
    assert response.status_code == 415
    assert "'br'" in response.text
    assert "gzip" in response.text


def test_a_small_body_that_becomes_large_is_refused(engine: FakeEngine) -> None:
    bomb = gzip.compress(b" " * 200_000_000)
    response = send(engine, bomb, content_encoding="gzip")
    assert response.status_code == 413
    assert "decompressed" in response.text


HALF = json.dumps("\ud83d")


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (PATH, f'{{"messages": [{{"role": "user", "content": {HALF}}}]}}', "messages[0].content"),
        (PATH, f'{{"tools": [{{"function": {{"description": {HALF}}}}}]}}',
         "tools[0].function.description"),
        (PATH, f'{{"tools": [{{"function": {{"parameters": {{"a": [1, {HALF}]}}}}}}]}}',
         "tools[0].function.parameters.a[1]"),
        ("/v1/messages", f'{{"messages": [{{"content": [{{"input": {{"x": {HALF}}}}}]}}]}}',
         "messages[0].content[0].input.x"),
        ("/v1/messages/count_tokens", f'{{"system": {HALF}}}', "system"),
        ("/v1/responses", f'{{"tools": [{{"parameters": {{{HALF}: 1}}}}]}}', "tools[0].parameters"),
        ("/tokenize", f'{{"prompt": {HALF}}}', "prompt"),
    ],
)  # fmt: skip
def test_half_a_character_is_refused_where_it_stands(
    engine: FakeEngine, path: str, body: str, place: str
) -> None:
    response = send(engine, body.encode(), path)
    assert response.status_code == 400, response.text
    assert place in response.text
    assert "surrogate" in response.text


LONG = "n" * 100_000
PART = {"type": LONG, "text": "x"}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ChatCompletionRequest, {LONG: 1}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [PART]}]}),
        (ChatCompletionRequest, {"response_format": PART}),
        (FunctionDefinition, {"name": "f", "parameters": {"type": [LONG]}}),
        (ResponsesRequest, {"model": NAME, "input": [PART]}),
        (MessagesRequest, {"messages": [{"role": "user", "content": [PART]}]}),
    ],
)
def test_a_long_name_is_told_in_short(model: type[BaseModel], fields: dict[str, Any]) -> None:
    """Pydantic writes all out that it is told, which takes a tenth of a second for 16 MB."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    [told] = [error["ctx"] for error in caught.value.errors() if "message" in error.get("ctx", {})]
    assert "nnn" in told["message"]
    assert len(repr(told)) < 2_000


def test_numbers_are_exact(engine: FakeEngine) -> None:
    big = 1234567890123456789012345678901234567890
    tool = {"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"n": {"const": big}}}}}  # fmt: skip
    assert send(engine, json.dumps({**CHAT, "tools": [tool]}).encode()).status_code == 200
    assert str(big) in (engine.submissions[-1].prompt or "")


@pytest.mark.parametrize("body", [b"{", b"[1,", b"NaN", b'{"a": 1e}', b"[" * 5_000, b"\xff\xfe"])
def test_no_json_is_said(engine: FakeEngine, body: bytes) -> None:
    response = send(engine, body)
    assert response.status_code == 400
    assert "not valid JSON" in response.text


MANY = 45_000
FLOODS: dict[str, tuple[str, Any]] = {
    "wrong token ids": ("/v1/completions", {"prompt": ["x"] * 2 + [1] * MANY}),
    "ids of the wrong kind": ("/v1/completions", {"prompt": [1] + ["x"] * MANY}),
    "unknown fields": (PATH, {f"field {number}": 1 for number in range(MANY)}),
    "biases": (PATH, {"logit_bias": {f"x{number}": 1 for number in range(MANY)}}),
    "messages": (PATH, {"messages": [5] * MANY}),
    "parts": (PATH, {"messages": [{"role": "user", "content": [5] * 900}] * 300}),
    "tokens": ("/detokenize", {"tokens": ["x"] * MANY}),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_mistakes_is_one_mistake(engine: FakeEngine, name: str) -> None:
    path, fields = FLOODS[name]
    response = send(engine, json.dumps({"model": NAME, **fields}).encode(), path)
    assert response.status_code == 400, response.text[:300]
    assert len(response.content) < 1_000


VALUES = MAX_VALUES + 2 * WINDOW
LISTS = MAX_LISTS + WINDOW // 4
NAMES = MAX_STRINGS + WINDOW // 4
ESCAPES = MAX_ESCAPES + 4 * WINDOW


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (b'{"prompt": [' + b"1," * (VALUES + 1) + b"1]}", VALUES),
        (b'{"a": [' + b"[[[0]]]," * (LISTS // 3) + b"0]}", LISTS),
        (b"{" + b",".join(b'"%x": 0' % number for number in range(NAMES + 1)) + b"}", NAMES),
        (b'{"stop": [' + b'"\\"",' * NAMES + b'""]}', NAMES),
        (b"{" + b",".join(b'"%x"\n\t: 0' % n for n in range(NAMES + 1)) + b"}", NAMES),
        (b'{"prompt": "' + b"\\n" * (ESCAPES + 1) + b'"}', ESCAPES),
    ],
    ids=["numbers", "lists", "names", "texts", "names and blanks", "escapes"],
)
def test_too_many_values_are_counted_before_they_are_read(
    engine: FakeEngine, body: bytes, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_body, "from_json", lambda *_, **__: pytest.fail("it is read"))
    response = send(engine, body, "/v1/completions")
    assert response.status_code == 400
    assert f"{most:,} are read" in response.text


def test_quotes_within_a_text_are_no_texts(engine: FakeEngine) -> None:
    text = 'say "a" and "b"' * MAX_STRINGS
    response = send(engine, json.dumps({"model": NAME, "prompt": text}).encode(), "/v1/completions")
    assert response.status_code == 400, "read, and longer than the window"


@pytest.mark.parametrize("path", ["/tokenize", PATH, "/v1/messages/count_tokens", "/v1/responses"])
def test_texts_that_cannot_fit_are_neither_rendered_nor_tokenized(
    engine: FakeEngine, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontend, "render", lambda *_: pytest.fail("it is rendered"))
    text = "a b " * 2_000_000
    talk = [{"role": "user", "content": text}]
    fields = {"/tokenize": {"prompt": text}, "/v1/responses": {"input": talk}}
    body = {"model": NAME, **fields.get(path, {"messages": talk})}
    response = send(engine, json.dumps(body).encode(), path)
    assert response.status_code == 400
    assert "800000" in response.text


def test_more_ids_than_a_window_are_not_made_text(engine: FakeEngine) -> None:
    tokens = [1] * (WINDOW + 1)
    response = send(engine, json.dumps({"tokens": tokens}).encode(), "/detokenize")
    assert response.status_code == 400
    assert f"{WINDOW + 1:,} tokens" in response.text
    assert send(engine, json.dumps({"tokens": tokens[1:]}).encode(), "/detokenize").is_success


def test_large_bodies_are_read_off_the_event_loop(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And few at a time; a small one does not wait for them."""
    from loire.server.web import json_body

    read = json_body._parse
    at_work, most, threads = 0, 0, set()
    lock = threading.Lock()

    def slow(raw: bytes, model: Any, window: int) -> Any:
        nonlocal at_work, most
        if len(raw) > json_body.SMALL_BYTES:
            with lock:
                at_work += 1
                most = max(most, at_work)
                threads.add(threading.current_thread())
            time.sleep(0.05)
            with lock:
                at_work -= 1
        return read(raw, model, window)

    monkeypatch.setattr(json_body, "_parse", slow)
    large = {**CHAT, "unheard_of": "x" * json_body.SMALL_BYTES}

    async def together() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app_over(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bodies = [large] * 6 + [CHAT]
            return await asyncio.gather(*(client.post(PATH, json=body) for body in bodies))

    *refused, answered = asyncio.run(together())
    assert [response.status_code for response in refused] == [400] * 6
    assert answered.status_code == 200
    assert most <= json_body.MAX_LARGE
    assert threading.main_thread() not in threads
