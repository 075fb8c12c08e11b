"""Fields and routes of vLLM's API beside OpenAI's: ids of tokens, the prompt's log-probabilities,
limits on tokens, what is kept of a long prompt."""

from pathlib import Path
from typing import Any

import pytest

from loire import __version__
from loire.engine.requests import NORMALIZED_AWAY
from support.fake_engine import NAME, FakeEngine, call, events

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, window=2048)


def ask(engine: FakeEngine, path: str, **fields: Any) -> Any:
    base: dict[str, Any] = (
        {"messages": [USER]} if path.startswith(CHAT) else {"prompt": "one two three"}
    )
    return call(engine, "POST", path, json={"model": NAME, **base, **fields})


def reply_ids(engine: FakeEngine) -> list[int]:
    return engine.frontend.tokenizer.encode(engine.reply)


def test_token_ids_of_a_completion(engine: FakeEngine) -> None:
    [choice] = ask(engine, TEXT, return_token_ids=True).json()["choices"]
    assert choice["token_ids"] == reply_ids(engine)
    assert choice["prompt_token_ids"] == engine.frontend.tokenizer.encode("one two three")
    [plain] = ask(engine, TEXT).json()["choices"]
    assert plain.keys() == {"index", "text", "logprobs", "finish_reason"}


def test_token_ids_of_a_chat(engine: FakeEngine) -> None:
    answer = ask(engine, CHAT, return_token_ids=True, n=2).json()
    assert [choice["token_ids"] for choice in answer["choices"]] == [reply_ids(engine)] * 2
    assert answer["prompt_token_ids"] == list(engine.submissions[-1].request.prompt_token_ids)
    assert "token_ids" not in ask(engine, CHAT).json()["choices"][0]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_token_ids_in_a_stream_join_to_those_of_the_whole(engine: FakeEngine, path: str) -> None:
    *chunks, done = events(ask(engine, path, return_token_ids=True, stream=True))
    assert done == "[DONE]"
    streamed = [t for chunk in chunks for c in chunk["choices"] for t in c.get("token_ids", ())]
    assert streamed == reply_ids(engine)
    firsts = [chunk if path == CHAT else chunk["choices"][0] for chunk in chunks]
    assert [number for number, first in enumerate(firsts) if "prompt_token_ids" in first] == [0]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_log_probabilities_of_the_prompt(engine: FakeEngine, path: str) -> None:
    answer = ask(engine, path, prompt_logprobs=1).json()
    shown = (answer if path == CHAT else answer["choices"][0])["prompt_logprobs"]
    prompt = engine.submissions[-1].request.prompt_token_ids
    assert shown[0] is None
    assert len(shown) == len(prompt)
    for token_id, position in zip(prompt[1:], shown[1:], strict=True):
        decoded = engine.frontend.tokenizer.token_text(token_id)
        assert position[str(token_id)] == {"logprob": -1.0, "rank": 2, "decoded_token": decoded}


def test_log_probabilities_of_the_prompt_go_with_those_of_an_echo(engine: FakeEngine) -> None:
    fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 2}
    [choice] = ask(engine, TEXT, **fields).json()["choices"]
    assert len(choice["prompt_logprobs"]) + len(reply_ids(engine)) == len(
        choice["logprobs"]["tokens"]
    )


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_limits_on_tokens_reach_the_engine(engine: FakeEngine, path: str) -> None:
    ask(engine, path, allowed_token_ids=[5, 7], bad_words=["Hello"])
    params = engine.submissions[-1].request.params
    encode = engine.frontend.tokenizer.encode
    assert tuple(params.allowed_token_ids or ()) == (5, 7)
    assert set(params.bad_token_ids) == {
        tuple(encode("Hello", False)), tuple(encode(" Hello", False))
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
        ({"allowed_token_ids": ["a"]}, "allowed_token_ids[0]"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": ["a"] * 257}, "bad_words"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_cannot_be_is_refused_by_name(
    engine: FakeEngine, path: str, fields: dict[str, Any], param: str
) -> None:
    response = ask(engine, path, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param, response.text


def test_of_a_long_prompt_the_end_is_kept(engine: FakeEngine) -> None:
    words = " ".join(f"word{number}" for number in range(3000))
    whole = engine.frontend.tokenizer.encode(words)
    assert ask(engine, TEXT, prompt=words).status_code == 400
    for number, kept in ((1, 1), (100, 100), (-1, 2048 - 16)):
        [choice] = ask(
            engine, TEXT, prompt=words, truncate_prompt_tokens=number, return_token_ids=True
        ).json()["choices"]
        assert choice["prompt_token_ids"] == whole[-kept:]
    short = ask(engine, TEXT, truncate_prompt_tokens=500, return_token_ids=True).json()
    assert short["choices"][0]["prompt_token_ids"] == engine.frontend.tokenizer.encode(
        "one two three"
    )


def test_of_a_conversation_that_is_cut_two_windows_are_read(engine: FakeEngine) -> None:
    most = 2 * 2048 * engine.frontend.tokenizer.longest_token * NORMALIZED_AWAY

    def asked(num_characters: int) -> Any:
        messages = [{"role": "user", "content": "a" * num_characters}]
        return ask(engine, CHAT, messages=messages, truncate_prompt_tokens=5)

    assert asked(most // 2 + 1).status_code == 200
    response = asked(most + 1)
    assert response.status_code == 400
    assert "2 windows, as many as are read" in response.json()["error"]["message"]


def test_of_a_long_text_that_becomes_a_vector_the_end_is_kept(engine: FakeEngine) -> None:
    words = " ".join(f"word{number}" for number in range(3000))
    path = "/v1/embeddings"
    for number in (None, 0, -2):
        body = {"model": NAME, "input": ["a", words], "truncate_prompt_tokens": number}
        assert call(engine, "POST", path, json=body).status_code == 400
    for number, kept in ((3, 3), (-1, 2048 - 1)):
        body = {"model": NAME, "input": words, "truncate_prompt_tokens": number}
        call(engine, "POST", path, json=body)  # which this engine has no vector for
        assert len(engine.submissions[-1].request.prompt_token_ids) == kept


def test_an_echo_of_a_cut_prompt_is_what_was_kept(engine: FakeEngine) -> None:
    [choice] = ask(engine, TEXT, echo=True, truncate_prompt_tokens=1, max_tokens=0).json()[
        "choices"
    ]
    last = engine.frontend.tokenizer.encode("one two three")[-1:]
    assert choice["text"] == engine.frontend.tokenizer.decode(last, skip_special_tokens=True)


def test_the_tokenizer_and_the_version_say_what_they_are(engine: FakeEngine) -> None:
    info = call(engine, "GET", "/tokenizer_info").json()
    tokens = engine.frontend.tokenizer.template_tokens
    assert info["chat_template"] == engine.frontend.template.source
    assert info["eos_token"] == tokens.get("eos_token")
    assert info["model_max_length"] == 2048
    assert call(engine, "GET", "/version").json() == {"version": __version__}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_rendered_request_is_the_one_that_is_computed(engine: FakeEngine, path: str) -> None:
    fields = {"temperature": 0.5, "stop": ["x"], "cache_salt": "s", "priority": 3, "logprobs": 1}
    fields |= {"logit_bias": {"7": 1.0}, "guided_choice": ["yes", "no"]}
    fields |= {"logprobs": True, "top_logprobs": 1} if path == CHAT else {"max_tokens": 9}
    ask(engine, path, **fields)
    computed = engine.submissions[-1].request
    found = ask(engine, f"{path}/render", **fields).json()
    assert engine.submissions[-1].request is computed, "nothing is computed"
    if path == TEXT:
        [found] = found
    prompt = list(computed.prompt_token_ids)
    room = engine.window - len(prompt)
    params = found.pop("sampling_params")
    assert found.pop("request_id").startswith("chatcmpl-" if path == CHAT else "cmpl-")
    assert found == {
        "token_ids": prompt,
        "model": NAME,
        "stream": False,
        "stream_options": None,
        "cache_salt": "s",
        "priority": 3,
    }
    assert params["structured_outputs"]["choice"] == ["yes", "no"]
    assert params["logit_bias"] == {"7": 1.0}
    assert (params["max_tokens"], params["seed"]) == (room if path == CHAT else 9, None)
    again = {name: value for name, value in params.items() if name in {"n", "temperature", "stop"}}
    assert again == {"n": 1, "temperature": 0.5, "stop": ["x"]}
    # Whoever has the ids goes on with them.
    ask(engine, TEXT, prompt=found["token_ids"], max_tokens=params["max_tokens"])
    assert engine.submissions[-1].request.prompt_token_ids == computed.prompt_token_ids


def test_prompts_are_rendered_one_by_one_and_refused_like_any(engine: FakeEngine) -> None:
    several = ask(engine, f"{TEXT}/render", prompt=[[5], [3, 4]]).json()
    assert [request["token_ids"] for request in several] == [[5], [3, 4]]
    for path in (TEXT, CHAT):
        refused = ask(engine, f"{path}/render", max_tokens=10_000)
        assert refused.status_code == ask(engine, path, max_tokens=10_000).status_code == 400
        assert ask(engine, f"{path}/render", model="other").status_code == 404
