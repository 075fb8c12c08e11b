"""HEAD, and slashes at the end of paths, as proxies and people write them."""

from pathlib import Path

import pytest

from support.fake_engine import NAME, FakeEngine, app_over, ask, call


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama)


@pytest.mark.parametrize(
    "path", ["/health", "/v1/models", "/metrics", "/version", "/", "/openapi.json"]
)
def test_head_answers_with_the_head_of_get(engine: FakeEngine, path: str) -> None:
    head, whole = call(engine, "HEAD", path), call(engine, "GET", path)
    assert head.status_code == whole.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_head_of_a_stream_ends(engine: FakeEngine) -> None:
    app = app_over(engine)
    before = len(engine.listeners)
    head = ask(app, "HEAD", "/admin/live")
    assert head.headers["content-type"].startswith("text/event-stream")
    assert len(engine.listeners) == before


def test_head_is_refused_where_get_is(engine: FakeEngine) -> None:
    assert call(engine, "HEAD", "/v1/chat/completions").status_code == 405
    assert call(engine, "HEAD", "/nowhere").status_code == 404


@pytest.mark.parametrize("slashes", ["/", "//"])
def test_a_slash_at_the_end_makes_no_difference(engine: FakeEngine, slashes: str) -> None:
    assert call(engine, "GET", f"/v1/models{slashes}").json()["object"] == "list"
    body = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
    answer = call(engine, "POST", f"/v1/chat/completions{slashes}", json=body)
    assert answer.json()["object"] == "chat.completion"
    assert call(engine, "GET", "/v1/models/nothing/").json()["error"]["param"] == "model"
