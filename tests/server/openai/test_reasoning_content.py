"""Thoughts through the chat API: told apart, streamed, constrained after them, sent back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loire.base.structured_outputs import StructuredOutputs
from loire.server.openai.chat_protocol import ChatCompletion, ChatCompletionChunk
from loire.text.grammar import GrammarCompiler
from support.fake_engine import NAME, FakeEngine, call, events

WINDOW = 2048
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% elif begin_thinking %}<think>\n{% endif %}"
)
"""In the manner of Qwen 3; with begin_thinking in that of DeepSeek R1."""
INSIDE = {"chat_template_kwargs": {"begin_thinking": True}}
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(tiny_llama, directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return directory


def _ask(engine: FakeEngine, **fields: Any) -> Any:
    messages = [{"role": "user", "content": "Is it?"}]
    body = {"model": NAME, "messages": messages, **fields}
    response = call(engine, "POST", "/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response


def _message(engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    body = _ask(engine, **fields).json()
    ChatCompletion.model_validate(body)
    [choice] = body["choices"]
    message: dict[str, Any] = choice["message"]
    return message


@pytest.mark.parametrize(
    ("reply", "fields", "reasoning", "content"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", {}, "Hm.", "Yes."),
        ("Hm.\n</think>\n\nYes.", INSIDE, "Hm.", "Yes."),
        ("Yes.", {}, None, "Yes."),
        ("Yes.</think>", OFF, None, "Yes.</think>"),
        ("<think>Hm", {}, "Hm", ""),
    ],
)
def test_thoughts_are_apart(
    model: Path, reply: str, fields: dict[str, Any], reasoning: str | None, content: str
) -> None:
    message = _message(FakeEngine(model, reply, window=WINDOW), **fields)
    assert message.get("reasoning_content") == reasoning
    assert message["content"] == content


def test_thoughts_stream_first(model: Path) -> None:
    engine = FakeEngine(model, "<think>\nHm. So.\n</think>\n\nYes. No.", window=WINDOW)
    *chunks, done = events(_ask(engine, stream=True))
    assert done == "[DONE]"
    told: dict[str, list[str]] = {"reasoning_content": [], "content": []}
    kinds = []
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        delta = chunk["choices"][0]["delta"]
        for kind, pieces in told.items():
            if delta.get(kind):
                pieces.append(delta[kind])
                kinds.append(kind)
    assert "".join(told["reasoning_content"]) == "Hm. So."
    assert "".join(told["content"]) == "Yes. No."
    assert len(told["reasoning_content"]) > 2, "they come as they are thought"
    assert kinds == sorted(kinds, reverse=True)


def test_thoughts_before_a_call(model: Path) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    made = '<tool_call>\n{"name": "weather", "arguments": {"city": "Tours"}}\n</tool_call>'
    engine = FakeEngine(model, f"Shall I? {made}?\n</think>\n\n{made}", window=WINDOW)
    message = _message(engine, tools=[tool], tool_choice="required", **INSIDE)
    assert message["reasoning_content"] == f"Shall I? {made}?"
    assert message["content"] is None
    assert [entry["function"]["name"] for entry in message["tool_calls"]] == ["weather"]


@pytest.mark.parametrize(
    ("fields", "text", "admitted"),
    [
        (INSIDE, 'Hm.\n</think>\n\n{"a": 1}', True),
        (INSIDE, '{"a": 1}', False),
        ({}, '<think>Hm.</think>{"a": 1}', True),
        ({}, '{"a": 1}', True),
        ({}, "<think>Hm.</think>Yes.", False),
        (OFF, '{"a": 1}', True),
        (OFF, '<think>Hm.</think>{"a": 1}', False),
    ],
)
def test_a_form_is_that_of_the_answer(
    model: Path, fields: dict[str, Any], text: str, admitted: bool
) -> None:
    """The thoughts are free: a form that held from the first token would leave no answer."""
    engine = FakeEngine(model, "x", window=WINDOW)
    _ask(engine, response_format={"type": "json_object"}, **fields)
    form = engine.submissions[0].request.params.structured_outputs
    assert isinstance(form, StructuredOutputs)
    tokenizer = engine.frontend.tokenizer
    matcher = GrammarCompiler(tokenizer).matcher(form)
    ids = tokenizer.encode(text, add_special_tokens=False)
    matches = matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
    assert matches == admitted


@pytest.mark.parametrize(
    ("reply", "finish"),
    [('Hm.</think>{"a": 1}', "stop"), ('Hm.</think>{"a": 1', "length"), ("Hm.", "length")],
)
def test_an_answer_that_stops_before_its_form_is_whole(
    model: Path, reply: str, finish: str
) -> None:
    engine = FakeEngine(model, f"{reply}END", window=WINDOW)
    ask: dict[str, Any] = {"response_format": {"type": "json_object"}, "stop": ["END"]}
    for stream in (False, True):
        response = _ask(engine, stream=stream, **ask, **INSIDE)
        last = events(response)[-2] if stream else response.json()
        assert last["choices"][0]["finish_reason"] == finish


def test_a_bad_form_is_named_as_it_was_sent(model: Path) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "f", "schema": {"type": "strin"}}}
    messages = [{"role": "user", "content": "Is it?"}]
    body = {"model": NAME, "messages": messages, "response_format": format_}
    response = call(FakeEngine(model, "x"), "POST", "/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "response_format"
    assert "strin" in error["message"]
    assert "grammar" not in error["message"]


def test_thoughts_are_sent_back(model: Path) -> None:
    engine = FakeEngine(model, "<think>Hm.</think>Yes.", window=WINDOW)
    before = [{"role": "user", "content": "Is it?"}, _message(engine)]
    _ask(engine, messages=[*before, {"role": "user", "content": "Sure?"}])
    assert "<|im_start|>assistant\n<think>Hm.</think>Yes.<|im_end|>" in (
        engine.submissions[-1].prompt or ""
    )
