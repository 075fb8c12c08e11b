"""The official openai client and a real server, which is killed in the middle of a batch."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from support.server_process import START_S, Server, start, wait_for
from support.tiny_models import save_tiny_llama

NUM_LINES = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("batches"), max_positions=1024)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def launch(model: Path, folder: Path) -> Server:
    server = start(
        model, "--served-model-name", "tiny", "--dtype", "float32", "--num-threads", "1",
        "--kv-cache-memory", "8MB", "--max-num-seqs", "8", "--data-dir", str(folder),
    )  # fmt: skip
    wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, START_S)
    return server


@pytest.fixture
def server(model: Path, folder: Path) -> Iterator[Server]:
    server = launch(model, folder)
    yield server
    server.process.kill()
    server.process.wait(START_S)


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    request = {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"This is request {custom_id}"}],
        "max_tokens": 40,
        "temperature": 0,
        "ignore_eos": True,
    }
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": request | body,
    }


def create(
    client: openai.OpenAI, lines: list[dict[str, Any]], endpoint: Any = "/v1/chat/completions"
) -> Any:
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",
        metadata={"made": "by a test"},
    )


def until(client: openai.OpenAI, batch_id: str, *states: str) -> Any:
    def reached() -> Any:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in states else None

    return wait_for(reached, START_S)


def read(client: openai.OpenAI, file_id: str) -> list[Any]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_killed_server_goes_on(model: Path, folder: Path, server: Server) -> None:
    lines = [chat(f"id-{i}") for i in range(NUM_LINES)]
    lines[3]["body"]["model"] = "unknown"
    with server.client as client:
        batch = create(client, lines)
        # In the middle: some are done, some are being computed, some have not begun.
        wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 10, START_S)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(START_S)
    again = launch(model, folder)
    try:
        with again.client as client:
            done = until(client, batch.id, "completed")
            assert (done.request_counts.total, done.request_counts.failed) == (NUM_LINES, 1)
            assert done.request_counts.completed == NUM_LINES - 1
            assert done.metadata == {"made": "by a test"}
            output, errors = read(client, done.output_file_id), read(client, done.error_file_id)
            expected = [line["custom_id"] for line in lines if line is not lines[3]]
            assert [line["custom_id"] for line in output] == expected, "each once, in order"
            assert [line["custom_id"] for line in errors] == ["id-3"]
            assert errors[0]["response"]["status_code"] == 404
            # What the killed server had computed and what the next one did are the same text.
            for line in (output[0], output[-1]):
                [request] = [x["body"] for x in lines if x["custom_id"] == line["custom_id"]]
                extra = {"ignore_eos": request.pop("ignore_eos")}
                alone = client.chat.completions.create(**request, extra_body=extra)
                message = line["response"]["body"]["choices"][0]["message"]
                assert message["content"] == alone.choices[0].message.content
            listed = client.batches.list()
            assert [item.id for item in listed] == [batch.id]
            assert {file.purpose for file in client.files.list()} == {"batch", "batch_output"}
    finally:
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(START_S) == 0, "".join(again.log)


def test_a_batch_is_cancelled_and_requests_overtake_it(server: Server) -> None:
    lines = [chat(f"id-{i}", max_tokens=900) for i in range(200)]
    with server.client as client:
        batch = create(client, lines)
        until(client, batch.id, "in_progress")
        wait_for(lambda: server.num_requests() >= 6, START_S)
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "now"}], max_tokens=4
        )
        assert answer.usage is not None
        meanwhile = client.batches.retrieve(batch.id)
        assert meanwhile.status == "in_progress"
        assert meanwhile.request_counts.completed < len(lines) // 2, "it has most of its way to go"
        client.batches.cancel(batch.id)
        ended = until(client, batch.id, "cancelled")
        assert ended.request_counts.completed < len(lines)
        wait_for(lambda: server.num_requests() == 0, START_S)
        with pytest.raises(openai.ConflictError, match="cannot be cancelled"):
            client.batches.cancel(batch.id)


def test_texts_become_vectors(server: Server) -> None:
    texts = [f"text number {i}" for i in range(20)]
    lines = [
        {"custom_id": text, "method": "POST", "url": "/v1/embeddings"}
        | {"body": {"model": "tiny", "input": text}}
        for text in texts
    ]
    with server.client as client:
        batch = create(client, lines, "/v1/embeddings")
        done = until(client, batch.id, "completed")
        output = read(client, done.output_file_id)
        assert [line["custom_id"] for line in output] == texts
        alone = client.embeddings.create(model="tiny", input=texts[7]).data[0].embedding
        vector = output[7]["response"]["body"]["data"][0]["embedding"]
        assert vector == pytest.approx(alone, abs=1e-5)


def test_bad_lines_are_told(server: Server) -> None:
    with server.client as client:
        batch = create(client, [chat("a"), chat("a"), chat("b", stream=True), chat("")])
        ended = until(client, batch.id, "failed")
        assert [(error.line, error.code) for error in ended.errors.data] == [
            (2, "duplicate_custom_id"),
            (3, "unsupported_stream"),
            (4, "invalid_json_line"),
        ]
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve("batch_unknown")
        with pytest.raises(openai.NotFoundError):
            client.files.content("file-unknown")
        assert client.files.delete(batch.input_file_id).deleted
