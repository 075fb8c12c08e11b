"""The official openai client against a real server process with a tiny random model."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall

from loire.checkpoint.checkpoint import TokenizerSource
from loire.text.tokenizer import load_tokenizer
from support.server_process import START_S, Server, start, wait_for
from support.tiny_models import save_tiny_llama

WINDOW = 1024
MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: Any = {"model": "tiny", "temperature": 0, "max_tokens": 12}
TOOLS: Any = [{"type": "function", "function": {"name": "f"}}]
ON: Any = {"ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = save_tiny_llama(tmp_path_factory.mktemp("served"), max_positions=WINDOW)
    server = start(
        model, "--served-model-name", "tiny", "--dtype", "float32", "--num-threads", "1",
        "--kv-cache-memory", "8MB", "--max-num-seqs", "4",
    )  # fmt: skip
    try:
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, START_S)
        yield server
        assert server.process.poll() is None, "".join(server.log)
    finally:
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(START_S)
    assert status == 0, "".join(server.log)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client as client:
        yield client


def refused(error: openai.APIStatusError) -> Any:
    assert isinstance(error.body, dict)
    return error.body


def test_it_answers_while_it_loads(server: Server) -> None:
    assert server.loading.status_code == 503
    assert server.loading.json()["status"] == "loading"
    # It answers first, and says so in its log afterwards.
    wait_for(lambda: "ready after" in "".join(server.log), START_S)
    log = "".join(server.log)
    for stage in ("listening on", "KV pool", "ready after"):
        assert log.count(stage) == 1, log


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert refused(caught.value)["code"] == "model_not_found"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, extra_body=ON, **GREEDY)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_streamed_chat_is_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, extra_body=ON, **GREEDY)
    stream = client.chat.completions.create(
        messages=MESSAGES,
        extra_body=ON,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_second_equal_request_reads_the_cache(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a question that nobody has asked before " * 4}]
    cached = []
    for _ in range(2):
        answer = client.chat.completions.create(messages=messages, **GREEDY)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached[1] == (answer.usage.prompt_tokens - 1) // 16 * 16
    assert cached[0] is not None
    assert cached[0] < 64 < cached[1]


def test_list_of_prompts_is_each_alone(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "One two three", "x"]
    together = client.completions.create(prompt=prompts, **GREEDY)
    alone = [client.completions.create(prompt=prompt, **GREEDY) for prompt in prompts]
    assert [c.text for c in together.choices] == [answer.choices[0].text for answer in alone]
    assert together.usage is not None
    usages = [answer.usage for answer in alone if answer.usage is not None]
    assert together.usage.prompt_tokens == sum(usage.prompt_tokens for usage in usages)


def test_streamed_completion_is_the_same(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="Once upon", echo=True, **GREEDY)
    stream = client.completions.create(prompt="Once upon", echo=True, stream=True, **GREEDY)
    assert "".join(c.choices[0].text for c in stream) == whole.choices[0].text
    assert whole.choices[0].text.startswith("Once upon")


def test_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> list[str | None]:
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, n=2, seed=seed, max_tokens=16, extra_body=ON
        )
        assert [choice.index for choice in answer.choices] == [0, 1]
        return [choice.message.content for choice in answer.choices]

    first = ask(7)
    assert first[0] != first[1]
    assert ask(7) == first
    assert ask(8) != first
    assert ask(None) != ask(None)


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=3, extra_body=ON, **GREEDY
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 12
    for entry in content:
        assert entry.logprob <= 0
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        # Greedy: the token that stands there is the likeliest.
        assert (entry.token, entry.logprob) == (
            entry.top_logprobs[0].token,
            entry.top_logprobs[0].logprob,
        )


def test_prompt_is_scored_as_it_was_generated(tiny_llama: Path, client: openai.OpenAI) -> None:
    """A completion sent back as part of the prompt has the logprobs it was generated with."""
    tokenizer = load_tokenizer(TokenizerSource(tokenizer_json=tiny_llama / "tokenizer.json"))
    id_of_byte = {tokenizer.token_bytes(i): i for i in range(3, tokenizer.vocab_size)}
    prompt = tokenizer.encode("Hello world")
    # Without the special tokens every token is a byte, whose id can be told from its name.
    bias = dict.fromkeys(map(str, range(3)), -100)
    made = client.completions.create(prompt=prompt, logprobs=1, logit_bias=bias, **GREEDY)
    assert made.choices[0].logprobs is not None
    names = made.choices[0].logprobs.tokens or []
    output = [
        id_of_byte[bytes.fromhex(name[-2:]) if name.startswith("bytes:") else name.encode()]
        for name in names
    ]
    scored = client.completions.create(
        model="tiny", prompt=[*prompt, *output], echo=True, logprobs=1, max_tokens=0
    )
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert len(output) == 12
    made_logprobs = made.choices[0].logprobs.token_logprobs
    assert logprobs.token_logprobs[len(prompt) :] == pytest.approx(made_logprobs, abs=1e-3)
    assert logprobs.tokens is not None
    assert logprobs.tokens[len(prompt) :] == names
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0


def test_stop_string_ends_the_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="count", extra_body=ON, **GREEDY).choices[0].text
    stop = whole[4:6]
    answer = client.completions.create(prompt="count", extra_body=ON, stop=[stop], **GREEDY)
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    kept: Any = {**ON, "include_stop_str_in_output": True}
    answer = client.completions.create(prompt="count", extra_body=kept, stop=[stop], **GREEDY)
    assert answer.choices[0].text == whole[: whole.index(stop) + len(stop)]


def test_prompt_that_does_not_fit(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt="x" * 1200, **GREEDY)
    error = refused(caught.value)
    assert error["code"] == "context_length_exceeded"
    assert "1200" in error["message"]
    assert str(WINDOW) in error["message"]


def test_a_body_that_is_too_large(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="tiny", prompt="a" * 20 * 2**20)
    assert caught.value.status_code == 413
    assert "at most 16,777,216 are read" in caught.value.message


def test_unknown_field_and_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=MESSAGES, extra_body={"foo": 1}, **GREEDY)
    assert "'foo'" in refused(caught.value)["message"]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            messages=MESSAGES, function_call="auto", functions=[{"name": "f"}], **GREEDY
        )
    assert refused(caught.value)["param"] in ("functions", "function_call")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)


def test_closing_a_stream_frees_its_request(server: Server, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="tiny", prompt="on and on", max_tokens=500, stream=True, extra_body=ON
    )
    next(iter(stream))
    assert server.num_requests() == 1
    stream.close()
    wait_for(lambda: server.num_requests() == 0, START_S)


def test_disconnects_free_running_and_queued_requests(server: Server) -> None:
    """Of 8 requests that do not stream, 4 wait in the queue; their sockets close."""
    address = server.url.removeprefix("http://").split(":")
    body = json.dumps(
        {"model": "tiny", "prompt": "on", "max_tokens": 500, "ignore_eos": True}
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    sockets = [socket.create_connection((address[0], int(address[1]))) for _ in range(8)]
    for connection in sockets:
        connection.sendall(head.encode() + body)
    wait_for(lambda: server.num_requests() == 8, START_S)
    for connection in sockets:
        connection.close()
    wait_for(lambda: server.num_requests() == 0, START_S)


@pytest.mark.parametrize("moment", ["loading", "idle", "busy"])
def test_sigterm_ends_it_cleanly(tiny_llama: Path, moment: str) -> None:
    server = start(tiny_llama, "--dtype", "float32", "--num-threads", "1")
    try:
        if moment != "loading":
            wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, START_S)
        text = ""
        if moment == "busy":
            with server.client as client:
                stream = client.completions.create(
                    model=str(tiny_llama), prompt="on", max_tokens=300, stream=True, extra_body=ON
                )
                next(iter(stream))
                server.process.send_signal(signal.SIGTERM)
                # What is in progress comes to its end.
                *_, last = stream
                text = str(last.choices[0].finish_reason)
        else:
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(START_S) == 0, "".join(server.log)
        assert text == ("length" if moment == "busy" else "")
        assert "Traceback" not in "".join(server.log)
    finally:
        server.process.kill()
        server.process.wait()


def test_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loire", "serve", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 1
    assert "config.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_taken_port_is_told(tiny_llama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "loire", "serve", str(tiny_llama), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_constrained_answers(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    answer = client.chat.completions.create(
        messages=MESSAGES, response_format=form, **{**GREEDY, "max_tokens": 40}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert json.loads(answer.choices[0].message.content or "")["a"] in {1, 2}
    chunks = client.completions.create(
        prompt="x", stream=True, extra_body={"guided_choice": ["left", "right"]}, **GREEDY
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) in {"left", "right"}


def test_constraint_cut_by_length_or_stop_says_length(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_object"}
    for fields in ({"max_tokens": 1}, {"stop": ["{"]}):
        answer = client.chat.completions.create(
            messages=MESSAGES, response_format=form, **{**GREEDY, **fields}
        )
        assert answer.choices[0].finish_reason == "length"


def test_required_calls_are_valid(client: openai.OpenAI) -> None:
    """The tiny random model writes nonsense, but what it writes is a call."""
    parameters = {
        "type": "object",
        "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "boolean"}},
        "required": ["unit", "days"],
    }
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    ask: Any = {"messages": MESSAGES, "tools": [tool], "tool_choice": "required"}
    ask |= {"parallel_tool_calls": False, "model": "tiny", "temperature": 0, "max_tokens": 150}
    answer = client.chat.completions.create(**ask)
    [made] = answer.choices[0].message.tool_calls or []
    assert isinstance(made, ChatCompletionMessageFunctionToolCall)
    assert made.function.name == "weather"
    assert json.loads(made.function.arguments).keys() == {"unit", "days"}
    assert answer.choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion()
    [again] = streamed.choices[0].message.tool_calls or []
    assert again.function.arguments == made.function.arguments


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["one text", "another", "one text"]
    # The client asks for base64 by itself.
    answer = client.embeddings.create(model="tiny", input=texts)
    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert vectors[0] == pytest.approx(vectors[2])
    assert vectors[0] != pytest.approx(vectors[1])
    assert sum(value * value for value in vectors[0]) == pytest.approx(1.0, abs=1e-5)
    assert answer.usage.prompt_tokens == sum(map(len, texts))
    plain = client.embeddings.create(model="tiny", input=texts[0], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(vectors[0])
    short = client.embeddings.create(model="tiny", input=texts[0], dimensions=4).data[0].embedding
    assert len(short) == 4
    assert sum(value * value for value in short) == pytest.approx(1.0, abs=1e-5)
    for fields, word in (
        ({"dimensions": 10_000}, "dimensions"),
        ({"input": ["x", ""]}, "empty"),
        ({"input": "x" * 5000}, "5000"),
        ({"input": []}, "input"),
    ):
        with pytest.raises(openai.BadRequestError, match=word):
            client.embeddings.create(**{"model": "tiny", "input": "x", **fields})
