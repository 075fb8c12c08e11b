"""The official openai and anthropic clients against a real server process: every route, streamed or
not, and what each refuses. The model is tiny and random: forms are checked, not what is said.
"""

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from support.server_process import START_S, Server, start, wait_for
from support.tiny_models import save_tiny_llama

WINDOW = 2048
MESSAGES: Any = [{"role": "user", "content": "Hello?"}]
CHAT: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
TEXT: Any = {"model": "tiny", "prompt": "Once", "max_tokens": 12, "temperature": 0}
RESPONSE: Any = {"model": "tiny", "input": "Hello?", "max_output_tokens": 12, "temperature": 0}
# (The client's own types leave some fields out that its API has.)
GREEDY: Any = {"extra_body": {"temperature": 0}}
MESSAGE: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, **GREEDY}
SCHEMA: Any = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "wet": {"type": "boolean"}},
    "required": ["unit", "wet"],
    "additionalProperties": False,
}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
RESPONSE_TOOL: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
MESSAGE_TOOL: Any = {"name": "weather", "input_schema": SCHEMA}

Call = Callable[[openai.OpenAI], Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = save_tiny_llama(tmp_path_factory.mktemp("served"), max_positions=WINDOW)
    server = start(
        model, "--served-model-name", "tiny", "--dtype", "float32", "--num-threads", "1",
        "--kv-cache-memory", "8MB", "--data-dir", str(tmp_path_factory.mktemp("data")),
    )  # fmt: skip
    try:
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, START_S)
        yield server
        assert server.num_requests() == 0
    finally:
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(START_S)
    assert status == 0, "".join(server.log)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as claude:
        yield claude


# --- chat ---------------------------------------------------------------------------------------

CHAT_FIELDS: list[Any] = [
    {},
    {"n": 3, "temperature": 1, "seed": 5},
    {"logprobs": True, "top_logprobs": 3},
    {"stop": ["\x00"], "presence_penalty": 0.5, "frequency_penalty": -0.5},
    {"logit_bias": {"65": -100}, "top_p": 0.5, "temperature": 0.7, "seed": 3},
    {"max_completion_tokens": 5, "max_tokens": openai.omit},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
    {"tools": [CHAT_TOOL], "tool_choice": "required", "max_tokens": 200},
    {"tools": [CHAT_TOOL], "tool_choice": "auto"},
    {"tools": [CHAT_TOOL], "tool_choice": "none"},
    {"extra_body": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True}},
    {"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}},
    {"extra_body": {"guided_regex": "[ab]{3}"}},
    {"extra_body": {"priority": 3, "cache_salt": "mine", "min_tokens": 2}},
    {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
]


@pytest.mark.parametrize("fields", CHAT_FIELDS)
def test_chat_streams_what_it_answers(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    asked = {**CHAT, **fields}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in own) == (choice.message.content or "")
        assert own[-1].finish_reason == choice.finish_reason
        assert bool(choice.logprobs) == bool(asked.get("logprobs"))
        calls = "".join(
            call.function.arguments or ""
            for part in own
            for call in part.delta.tool_calls or ()
            if call.function is not None
        )
        made: Any = choice.message.tool_calls or ()
        assert calls == "".join(call.function.arguments for call in made)
        if asked.get("tool_choice") == "required":
            assert json.loads(made[0].function.arguments).keys() == {"unit", "wet"}
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


# --- completions --------------------------------------------------------------------------------

TEXT_FIELDS: list[Any] = [
    {},
    {"n": 2, "temperature": 1, "seed": 1},
    {"prompt": ["one", "two"]},
    {"prompt": [65, 66, 67]},
    {"prompt": [[65], [66, 67]]},
    {"echo": True},
    {"echo": True, "max_tokens": 0, "logprobs": 2},
    {"logprobs": 2},
    {"extra_body": {"structured_outputs": {"regex": "[0-9]{4}"}}},
]


@pytest.mark.parametrize("fields", TEXT_FIELDS)
def test_completions_stream_what_they_answer(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    asked = {**TEXT, **fields}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason


# --- responses ----------------------------------------------------------------------------------

RESPONSE_FIELDS: list[Any] = [
    {},
    {"instructions": "be brief", "metadata": {"a": "b"}},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
    {"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}},
    {"tools": [RESPONSE_TOOL], "tool_choice": "required", "max_output_tokens": 200},
    {"store": False, "user": "u"},
]


@pytest.mark.parametrize("fields", RESPONSE_FIELDS)
def test_responses_stream_what_they_answer(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    asked = {**RESPONSE, **fields}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
    last = events[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    assert last.type == f"response.{whole.status}"
    assert last.response.output_text == whole.output_text
    assert [item.type for item in last.response.output] == [item.type for item in whole.output]
    if asked.get("store", True):
        assert client.responses.retrieve(whole.id).output_text == whole.output_text
        again = client.responses.create(**{**RESPONSE, "previous_response_id": whole.id})
        assert again.previous_response_id == whole.id
        client.responses.delete(whole.id)


# --- messages -----------------------------------------------------------------------------------

MESSAGE_FIELDS: list[Any] = [
    {},
    {"system": "be brief"},
    {"messages": [*MESSAGES, {"role": "assistant", "content": "Once"}]},
    {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    {"stop_sequences": ["\x00"], "extra_body": {"temperature": 0, "top_k": 3, "top_p": 0.9}},
    {"tools": [MESSAGE_TOOL], "tool_choice": {"type": "any"}, "max_tokens": 200},
    {"tools": [MESSAGE_TOOL], "tool_choice": {"type": "tool", "name": "weather"}},
    {"tools": [MESSAGE_TOOL], "tool_choice": {"type": "none"}},
    {"metadata": {"user_id": "u"}, "service_tier": "auto"},
]


@pytest.mark.parametrize("fields", MESSAGE_FIELDS)
def test_messages_stream_what_they_answer(
    claude: anthropic.Anthropic, fields: dict[str, Any]
) -> None:
    asked = {**MESSAGE, **fields}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert [block.type for block in final.content] == [block.type for block in whole.content]
    texts = [[getattr(b, "text", None) for b in message.content] for message in (final, whole)]
    assert texts[0] == texts[1]


def test_counted_tokens_are_those_of_the_prompt(claude: anthropic.Anthropic) -> None:
    count = claude.messages.count_tokens(model="tiny", messages=MESSAGES, tools=[MESSAGE_TOOL])
    usage = claude.messages.create(**MESSAGE, tools=[MESSAGE_TOOL]).usage
    cached = usage.cache_read_input_tokens or 0
    assert count.input_tokens == usage.input_tokens + cached


# --- the other routes ---------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_files_and_batches(client: openai.OpenAI) -> None:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    assert client.files.retrieve(file.id).bytes == len(json.dumps(line))
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", START_S)
    done = client.batches.retrieve(batch.id)
    assert done.output_file_id is not None
    answer = json.loads(client.files.content(done.output_file_id).text)
    assert answer["custom_id"] == "1"
    client.files.delete(file.id)


# --- refusals -----------------------------------------------------------------------------------

REFUSALS: dict[str, Call] = {
    "temperature": lambda c: c.chat.completions.create(**{**CHAT, "temperature": 3}),
    "max_tokens": lambda c: c.chat.completions.create(**{**CHAT, "max_tokens": 0}),
    "context": lambda c: c.chat.completions.create(**{**CHAT, "max_tokens": WINDOW}),
    "messages": lambda c: c.chat.completions.create(**{**CHAT, "messages": []}),
    "foo": lambda c: c.chat.completions.create(**CHAT, extra_body={"foo": 1}),
    "functions": lambda c: c.chat.completions.create(**CHAT, functions=[{"name": "f"}]),
    "audio": lambda c: c.chat.completions.create(**CHAT, extra_body={"audio": {"voice": "x"}}),
    "tool_choice": lambda c: c.chat.completions.create(**CHAT, tool_choice="required"),
    "top_logprobs": lambda c: c.chat.completions.create(**CHAT, top_logprobs=2),
    "guided_regex": lambda c: c.chat.completions.create(**CHAT, extra_body={"guided_regex": "("}),
    "suffix": lambda c: c.completions.create(**TEXT, suffix="end"),
    "best_of": lambda c: c.completions.create(**TEXT, best_of=3),
    "prompt": lambda c: c.completions.create(**{**TEXT, "prompt": ""}),
    "background": lambda c: c.responses.create(**RESPONSE, background=True),
    "conversation": lambda c: c.responses.create(**RESPONSE, conversation="conv_1"),
    "previous_response_id": lambda c: c.responses.create(
        **RESPONSE, previous_response_id="resp_none"
    ),
    "dimensions": lambda c: c.embeddings.create(model="tiny", input="x", dimensions=100_000),
    "input": lambda c: c.embeddings.create(model="tiny", input=[]),
    "file-none": lambda c: c.batches.create(
        input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h"
    ),
}


@pytest.mark.parametrize("word", REFUSALS)
def test_mistakes_are_refused_by_name(client: openai.OpenAI, word: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        REFUSALS[word](client)
    assert caught.value.status_code in {400, 404}
    body = caught.value.response.json()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    assert word in f"{body['message']} {body['param']} {body['code']}"


NOT_FOUND: list[Call] = [
    lambda c: c.chat.completions.create(**{**CHAT, "model": "other"}),
    lambda c: c.completions.create(**{**TEXT, "model": "other"}),
    lambda c: c.responses.create(**{**RESPONSE, "model": "other"}),
    lambda c: c.embeddings.create(model="other", input="x"),
    lambda c: c.models.retrieve("other"),
    lambda c: c.responses.retrieve("resp_none"),
    lambda c: c.responses.delete("resp_none"),
    lambda c: c.responses.cancel("resp_none"),
    lambda c: c.files.retrieve("file-none"),
    lambda c: c.files.content("file-none"),
    lambda c: c.batches.retrieve("batch_none"),
    lambda c: c.batches.cancel("batch_none"),
]


@pytest.mark.parametrize("call", NOT_FOUND)
def test_what_is_not_there_is_404(client: openai.OpenAI, call: Call) -> None:
    with pytest.raises(openai.NotFoundError):
        call(client)


ANTHROPIC_REFUSALS: list[Any] = [
    ({"extra_body": {"temperature": 2}}, "temperature"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [*MESSAGES, {"role": "assistant", "content": ""}]}, "last message"),
    ({"thinking": {"type": "loud"}}, "thinking"),
    ({"tool_choice": {"type": "any"}}, "no 'tools'"),
    ({"extra_body": {"container": "x"}}, "container"),
]


@pytest.mark.parametrize(("fields", "words"), ANTHROPIC_REFUSALS)
def test_anthropic_mistakes_are_refused_by_name(
    claude: anthropic.Anthropic, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(**{**MESSAGE, **fields})
    body = caught.value.response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert words in body["error"]["message"]
