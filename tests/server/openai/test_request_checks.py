"""Honour or refuse, never ignore: what is wrong with a request is said, and where."""

import json
from pathlib import Path
from typing import Any

import pytest

from loire.server.openai.chat_protocol import ChatCompletionRequest
from support.fake_engine import NAME, FakeEngine, call

CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": NAME, "prompt": "hi"}
LONG = "x" * 600


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama)


def chat(engine: FakeEngine, **fields: Any) -> Any:
    return call(engine, "POST", "/v1/chat/completions", json={**CHAT, **fields})


def complete(engine: FakeEngine, **fields: Any) -> Any:
    return call(engine, "POST", "/v1/completions", json={**TEXT, **fields})


def mistake(response: Any, status: int = 400) -> dict[str, Any]:
    """The error of a response in OpenAI's form, which must have its four fields exactly."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temprature": 0.5}, "temprature"),
        ({"unheard_of": "x"}, "unheard_of"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"best_of": 1}, "best_of"),
    ],
)
def test_unknown_field_is_named(engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    error = mistake(chat(engine, **fields))
    assert (error["param"], error["code"]) == (param, "unknown_field")
    assert repr(param) in error["message"]


@pytest.mark.parametrize("name", sorted(ChatCompletionRequest.UNSUPPORTED))
def test_unsupported_chat_field_is_named(engine: FakeEngine, name: str) -> None:
    error = mistake(chat(engine, **{name: {"some": "value"}}))
    assert (error["param"], error["code"]) == (name, "unsupported_field")
    assert "not supported" in error["message"]
    assert chat(engine, **{name: None}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 3, "n": 2}, "best_of"),
    ],
)
def test_unsupported_completion_field_is_named(
    engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    error = mistake(complete(engine, **fields))
    assert param in str(error["message"])
    assert error["code"] == "unsupported_field"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "'xml'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "'image_url'",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]},
            "messages[0].audio",
            "answers with text",
        ),
    ],
)
def test_unsupported_value_is_named(
    engine: FakeEngine, fields: dict[str, Any], param: str, words: str
) -> None:
    error = mistake(chat(engine, **fields))
    assert (error["param"], error["code"]) == (param, "unsupported_field")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": 2.5}, "temperature", ["2", "2.5"]),
        ({"temperature": "0.5"}, "temperature", ["number", "'0.5'"]),
        ({"temperature": -1}, "temperature", ["-1"]),
        ({"top_p": -1}, "top_p", ["greater than or equal to 0"]),
        ({"n": 0}, "n", ["1", "0"]),
        ({"n": 129}, "n", ["128", "129"]),
        ({"n": 1.5}, "n", ["integer"]),
        ({"n": True}, "n", ["integer"]),
        ({"max_tokens": 0}, "max_tokens", ["1", "0"]),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", ["(4)", "(5)"]),
        ({"top_logprobs": 3}, "top_logprobs", ["'logprobs'"]),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ["20", "21"]),
        ({"presence_penalty": 3}, "presence_penalty", ["2", "3"]),
        ({"frequency_penalty": -3}, "frequency_penalty", ["-2", "-3"]),
        ({"repetition_penalty": 0}, "repetition_penalty", ["0.01"]),
        ({"min_p": 1.1}, "min_p", ["1.1"]),
        ({"seed": 2**64}, "seed", ["18446744073709551616"]),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", ["100", "101"]),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", ["integer"]),
        ({"logit_bias": {"100000": 1}}, "logit_bias", ["100000", "258"]),
        ({"stop": ""}, "stop", ["1 character"]),
        ({"stop": ["a", LONG]}, "stop[1]", ["512", "600 characters"]),
        ({"stop": ["a"] * 17}, "stop", ["16", "17"]),
        ({"stop": 5}, "stop", ["string"]),
        ({"stop_token_ids": [999]}, "stop_token_ids", ["999", "258"]),
        ({"min_tokens": 9, "max_tokens": 4}, "min_tokens", ["9", "4"]),
        ({"stream_options": {"include_usage": True}}, "stream_options", ["'stream'"]),
        ({"messages": []}, "messages", ["1"]),
        ({"messages": None}, "messages", ["required"]),
        ({"messages": [{"role": "user"}]}, "messages[0].content", ["required"]),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role", ["'king'"]),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", ["string"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            ["required"],
        ),
        ({"model": 5}, "model", ["string"]),
    ],
)
def test_bad_chat_value_is_named(
    engine: FakeEngine, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    error = mistake(chat(engine, **fields))
    assert error["param"] == param, error
    for word in words:
        assert word in error["message"], error


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": []}, "prompt", ["1"]),
        ({"prompt": ""}, "prompt", ["empty"]),
        ({"prompt": ["a", ""]}, "prompt[1]", ["empty"]),
        ({"prompt": 5}, "prompt", ["string"]),
        ({"prompt": [5, "a"]}, "prompt[1]", ["integer"]),
        ({"prompt": ["a", 5]}, "prompt[1]", ["string"]),
        ({"prompt": [[5], []]}, "prompt[1]", ["1"]),
        ({"prompt": [5, 300]}, "prompt", ["300", "258"]),
        ({"prompt": [-5]}, "prompt[0]", ["-5"]),
        ({"prompt": ["a"] * 200, "n": 11}, "prompt", ["2200", "2048"]),
        ({"max_tokens": 0}, "max_tokens", ["echo"]),
        ({"logprobs": 21}, "logprobs", ["20"]),
        ({"logprobs": True}, "logprobs", ["integer"]),
    ],
)
def test_bad_completion_value_is_named(
    engine: FakeEngine, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    error = mistake(complete(engine, **fields))
    assert error["param"] == param, error
    for word in words:
        assert word in error["message"], error


def test_prompt_that_does_not_fit_is_refused_with_the_numbers(engine: FakeEngine) -> None:
    error = mistake(complete(engine, prompt="x" * 300))
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert "300 tokens" in error["message"]
    assert "256" in error["message"]
    error = mistake(complete(engine, prompt="x" * 250, max_tokens=20))
    assert error["param"] == "max_tokens"
    assert "250" in error["message"]
    assert "270" in error["message"]
    error = mistake(chat(engine, messages=[{"role": "user", "content": "x" * 300}]))
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    error = mistake(chat(engine, max_completion_tokens=250))
    assert error["param"] == "max_completion_tokens"


def test_null_stands_for_an_absent_field(engine: FakeEngine) -> None:
    optional = {
        name: None
        for name, field in ChatCompletionRequest.model_fields.items()
        if not field.is_required()
    }
    assert chat(engine, **optional).status_code == 200


def test_fields_reach_the_engine(engine: FakeEngine) -> None:
    fields = {
        "n": 2,
        "temperature": 0.5,
        "top_k": -1,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "seed": -5,
        "max_tokens": 7,
        "min_tokens": 2,
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
    }
    more = {"logit_bias": {"5": -1}, "stop": "zz", "stop_token_ids": [9], "cache_salt": "salt"}
    assert complete(engine, **fields, **more, echo=True, logprobs=3).status_code == 200
    request = engine.submissions[-1].request
    params = request.params
    assert {name: getattr(params, name) for name in fields} == {**fields, "top_k": 0}
    assert params.logit_bias == {5: -1.0}
    assert (params.stop, params.stop_token_ids) == (("zz",), (9,))
    assert (params.logprobs, params.prompt_logprobs) == (3, 3)
    assert request.cache_salt == "salt"
    assert (request.seed, request.stop_token_ids) == (-5, (9,))


def test_defaults_are_those_of_openai(engine: FakeEngine) -> None:
    assert chat(engine).status_code == 200
    params = engine.submissions[-1].request.params
    assert (params.max_tokens, params.temperature, params.top_p, params.n) == (None, 1.0, 1.0, 1)
    assert complete(engine).status_code == 200
    assert engine.submissions[-1].request.params.max_tokens == 16


def test_roles_and_parts_reach_the_template(engine: FakeEngine) -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        # An answer as the openai client gives it back.
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "audio": None},
        {"role": "tool", "content": "d", "tool_call_id": "1"},
    ]
    assert chat(engine, messages=messages).status_code == 200
    assert engine.submissions[-1].prompt == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n"
        "<|im_start|>user\nThe function that you called returned this:\nd\n"
        "Answer my question with it.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model": ', "not valid JSON"),
        (b"[1, 2]", "JSON object"),
        (b"", "JSON object"),
        (b"[" * 50_000, ""),
        (b'{"model": "tiny", "prompt": NaN}', "not valid JSON"),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', "not valid JSON"),
        (b'{"model": "tiny", "prompt": "a", "n": ' + b"9" * 5000 + b"}", ""),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "prompt holds half"),
        (b'{"model": "tiny", "prompt": "a", "\\ud800": 1}', "the body holds half"),
        (b'{"model": "tiny", "prompt": "\xff"}', ""),
    ],
)
def test_bad_body_is_a_400(engine: FakeEngine, content: bytes, words: str) -> None:
    headers = {"content-type": "application/json"}
    error = mistake(call(engine, "POST", "/v1/completions", content=content, headers=headers))
    assert words in error["message"], error


def test_body_of_another_type_is_a_400(engine: FakeEngine) -> None:
    content, headers = json.dumps(TEXT), {"content-type": "text/plain"}
    error = mistake(call(engine, "POST", "/v1/completions", content=content, headers=headers))
    assert "application/json" in error["message"]


@pytest.mark.parametrize("told", [True, False])
def test_body_that_is_too_large_is_not_read(engine: FakeEngine, told: bool) -> None:
    async def endless() -> Any:
        for _ in range(20):
            yield b" " * 2**20

    content = b" " * (17 * 2**20) if told else endless()
    headers = {"content-type": "application/json"}
    response = call(engine, "POST", "/v1/completions", content=content, headers=headers)
    assert "16,777,216" in mistake(response, 413)["message"]


def test_unknown_model_and_route(engine: FakeEngine) -> None:
    error = mistake(chat(engine, model="gpt-9"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'gpt-9'" in error["message"]
    assert "'tiny'" in error["message"]
    mistake(call(engine, "GET", "/v1/models/gpt-9"), 404)
    mistake(call(engine, "GET", "/v2/anything"), 404)
    mistake(call(engine, "GET", "/v1/chat/completions"), 405)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needs"),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "x", "schema": {}}}},
            "response_format.json_schema",
            "has no",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "wrong"}},
                }
            },
            "response_format",
            "type",
        ),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed"),
        ({"guided_choice": []}, "guided_choice", "at least 1"),
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs", "unknown name"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regx": "a"}}, "structured_outputs.regx", "unknown field"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "one form"),
        (
            {"guided_json": {"type": "object"}, "response_format": {"type": "json_object"}},
            "response_format",
            "one form",
        ),
    ],
)
def test_bad_constraint_is_refused_by_its_field(
    engine: FakeEngine, fields: dict[str, Any], param: str, words: str
) -> None:
    error = mistake(chat(engine, **fields))
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"guided_json": '{"type": "object"}'},
        {"structured_outputs": {"json": {"type": "object"}}},
        {"structured_outputs": {"choice": ["a", "b"], "regex": None}},
    ],
)
def test_constraint_reaches_the_engine(engine: FakeEngine, fields: dict[str, Any]) -> None:
    assert chat(engine, **fields).status_code == 200
    spec = engine.submissions[-1].request.params.structured_outputs
    assert spec is not None
    assert spec.kind in {"json", "json_object", "choice"}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"suffix": "end"}, "suffix", "fills in the middle"),
        ({"suffix": "end", "echo": True}, "echo", "two parts"),
        ({"suffix": "end", "prompt": [5, 6]}, "suffix", "texts"),
    ],
)
def test_suffix_is_for_models_that_know_it(
    engine: FakeEngine, fields: dict[str, Any], param: str, words: str
) -> None:
    error = mistake(complete(engine, **fields))
    assert error["param"] == param
    assert words in error["message"]
