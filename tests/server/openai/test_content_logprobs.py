"""The log-probabilities of a chat's content join to it, whatever else the answer holds."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loire.base.outputs import Logprob
from loire.checkpoint.open import open_checkpoint
from loire.server.openai.content_logprobs import ContentPositions
from loire.text.tokenizer import checkpoint_tokenizer
from loire.text.tools.events import ContentDelta, ReasoningDelta
from support.fake_engine import NAME, FakeEngine, call, events

ASK: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "hi"}],
    "logprobs": True,
    "top_logprobs": 1,
}
REPLIES = ["Hello there", "é😀👩\u200d👧 end", "one two STOP three"]


def joined(tokens: list[dict[str, Any]]) -> bytes:
    return bytes(byte for token in tokens for byte in token["bytes"])


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("stop", [None, "STOP"])
def test_tokens_join_to_the_content(tiny_llama: Path, reply: str, stop: str | None) -> None:
    engine = FakeEngine(tiny_llama, reply)
    body = {**ASK, "stop": stop}
    [whole] = call(engine, "POST", "/v1/chat/completions", json=body).json()["choices"]
    assert joined(whole["logprobs"]["content"]).decode() == whole["message"]["content"]
    streamed = call(engine, "POST", "/v1/chat/completions", json={**body, "stream": True})
    chunks = [chunk["choices"][0] for chunk in events(streamed)[:-1]]
    text = "".join(chunk["delta"].get("content") or "" for chunk in chunks)
    tokens = [t for chunk in chunks if chunk["logprobs"] for t in chunk["logprobs"]["content"]]
    assert joined(tokens).decode() == text == whole["message"]["content"]


@given(
    st.text("ab é", max_size=8),
    st.text("ab é", min_size=1, max_size=8),
    st.lists(st.integers(1, 5), max_size=12),
)
def test_thoughts_are_not_among_them(thoughts: str, content: str, sizes: list[int]) -> None:
    tokenizer = checkpoint_tokenizer(open_checkpoint(TINY[0]))
    picker = ContentPositions(tokenizer, begins_at_once=False)
    raw = tokenizer.encode(f"<t>{thoughts}</t>", False)
    picked = picker.add(_positions(raw), [ReasoningDelta(thoughts)])
    assert picked == []
    ids = tokenizer.encode(content, False)
    for size in [*sizes, len(ids)]:
        now, ids = ids[:size], ids[size:]
        text = b"".join(tokenizer.token_bytes(token_id) for token_id in now)
        shown = text.decode(errors="ignore")
        if shown.encode() == text:
            picked += picker.add(_positions(now), [ContentDelta(shown)])
        else:
            ids = now + ids
    rest = b"".join(tokenizer.token_bytes(token_id) for token_id in ids).decode()
    picked += picker.add([*_positions(ids), *_positions([0])], [ContentDelta(rest)])
    told = b"".join(tokenizer.token_bytes(next(iter(position))) for position in picked)
    assert told.decode() == content


TINY: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def _model(tiny_llama: Path) -> None:
    TINY.append(tiny_llama)


def _positions(token_ids: list[int]) -> list[Any]:
    return [{token_id: Logprob(-1.0, 1, "")} for token_id in token_ids]
