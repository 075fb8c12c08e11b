"""A real `loire serve` process: killed engines, a full queue, draining, and no torch in it."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loire.base.errors import ConfigError
from loire.cli.main import _parser
from loire.cli.serve import run
from support.server_process import START_S, Server, start, wait_for

FLAGS = ("--dtype", "float32", "--num-threads", "1", "--served-model-name", "tiny")
LONG: Any = {"model": "tiny", "max_tokens": 480, "temperature": 0, "ignore_eos": True}


@contextmanager
def serving(model: Path, *flags: str) -> Iterator[Server]:
    server = start(model, *FLAGS, *flags)
    try:
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, START_S)
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[Server]:
    with serving(tiny_llama, "--max-num-seqs", "32") as running:
        yield running


def engine_pid(server: Server) -> int:
    """The server's only child."""
    pid = server.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def post(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json={**LONG, **fields}, timeout=START_S)


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def test_the_server_has_no_torch(server: Server) -> None:
    texts(post(server, prompt="x", max_tokens=3))
    pid = server.process.pid
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{engine_pid(server)}/maps").read_text()


def test_kill_9_in_the_middle_of_streams(server: Server) -> None:
    prompts = [f"story {number}" for number in range(12)]
    expected = [texts(post(server, prompt=prompt, seed=7))[0] for prompt in prompts]
    begun = threading.Semaphore(0)

    def stream(prompt: str) -> str:
        text = ""
        body = {**LONG, "prompt": prompt, "stream": True, "seed": 7}
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, timeout=START_S
        ) as lines:
            for number, line in enumerate(lines.iter_lines()):
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
                if number == 0:
                    begun.release()
        return text

    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = [pool.submit(stream, prompt) for prompt in prompts]
        for _ in prompts:
            assert begun.acquire(timeout=START_S)
        killed = engine_pid(server)
        assert server.num_requests() > 0, "in the middle"
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503, START_S)
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        assert [answer.result(START_S) for answer in answers] == expected
    assert engine_pid(server) != killed
    wait_for(lambda: server.num_requests() == 0, START_S)
    wait_for(lambda: httpx.get(f"{server.url}/health/ready").json() == {"status": "ready"}, START_S)


def test_full_queue_is_a_429_at_once(tiny_llama: Path) -> None:
    flags = ("--max-num-seqs", "1", "--max-queued-requests", "3", "--max-queued-tokens", "1k")
    with serving(tiny_llama, *flags) as server, ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(post, server, prompt="on", n=1) for _ in range(20)]
        responses = [answer.result(START_S) for answer in answers]
        refused = [response for response in responses if response.status_code == 429]
        # One runs, three wait; by the time the last ones come, some may have ended.
        assert 1 <= len(refused) <= 16
        assert all(texts(response) for response in responses if response.status_code != 429)
        error = refused[0].json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert "3 sequences" in error["message"]
        assert refused[0].headers["retry-after"] == "1"


def test_sigterm_drains(tiny_llama: Path) -> None:
    with serving(tiny_llama, "--max-num-seqs", "1") as server, ThreadPoolExecutor(4) as pool:
        running = [pool.submit(post, server, prompt="on", n=4) for _ in range(2)]
        wait_for(lambda: server.num_requests() == 2, START_S)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503, START_S)
        assert httpx.get(f"{server.url}/health/ready").json() == {"status": "draining"}
        refused = post(server, prompt="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        for answer in running:
            assert len(texts(answer.result(START_S))) == 4
        assert server.process.wait(START_S) == 0, "".join(server.log)
        assert "Traceback" not in "".join(server.log)


@pytest.mark.parametrize("second_signal", [False, True])
def test_the_grace_period_ends(tiny_llama: Path, second_signal: bool) -> None:
    grace = "600" if second_signal else "0.2"
    flags = ("--max-num-seqs", "1", "--grace-period", grace)
    with serving(tiny_llama, *flags) as server, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(post, server, prompt="on", n=8) for _ in range(8)]
        wait_for(lambda: server.num_requests() == 8, START_S)
        pid = engine_pid(server)
        server.process.send_signal(signal.SIGTERM)
        if second_signal:
            wait_for(lambda: "stopping" in "".join(server.log), START_S)
            server.process.send_signal(signal.SIGTERM)
        server.process.wait(START_S)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), START_S)
        if not second_signal:
            ended = [answer.result(START_S) for answer in answers]
            cut = [response for response in ended if response.status_code == 503]
            assert cut
            assert "grace period of 0.2 s" in cut[0].json()["error"]["message"]
            assert "Traceback" not in "".join(server.log)
        else:
            assert all(_failed(answer) for answer in answers)


def _failed(answer: "Future[httpx.Response]") -> bool:
    error = answer.exception(START_S)
    return isinstance(error, httpx.TransportError) or answer.result().status_code >= 500


def test_request_timeout_is_a_504(tiny_llama: Path) -> None:
    flags = ("--max-num-seqs", "1", "--request-timeout", "0.3")
    with serving(tiny_llama, *flags) as server:
        late = post(server, prompt="on", n=16)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "request_timeout")
        assert re.search(r"within 0\.3 s, waiting included", late.json()["error"]["message"])
        wait_for(lambda: server.num_requests() == 0, START_S)


def test_an_engine_that_cannot_come_back_ends_the_server(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    subprocess.run(["cp", "-r", str(tiny_llama), str(model)], check=True)
    with serving(model) as server:
        (model / "config.json").unlink()
        os.kill(engine_pid(server), signal.SIGKILL)
        assert server.process.wait(START_S) == 1
        assert "config.json" in "".join(server.log)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--max-queued-requests", "0"), ("--request-timeout", "-1"), ("--grace-period", "-1")],
)
def test_limits_that_cannot_work_are_refused(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag[2:].replace('-', '_')} must .* {value}"):
        run(_parser("serve")[0].parse_args(["serve", "--port", "0", flag, value]))


def test_a_reader_that_stops_delays_nobody(server: Server) -> None:
    """Its answer is computed to the end and waits for it; the connection holds little of it."""
    host, port = server.url.removeprefix("http://").split(":")
    fields = {**LONG, "prompt": "on", "n": 16, "logprobs": 5, "stream": True}
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(START_S)
        reader.connect((host, int(port)))
        reader.sendall(head.encode() + body)
        wait_for(lambda: server.num_requests() == 1, START_S)
        texts(post(server, prompt="x", max_tokens=30))
        wait_for(lambda: server.num_requests() == 0, START_S)
        received = bytearray()
        while data := reader.recv(2**16):
            received += data
    events = [json.loads(line[6:]) for line in received.split(b"\r\n\r\n", 1)[1].split(b"\n")
              if line.startswith(b"data: {")]  # fmt: skip
    tokens = [len(choice["logprobs"]["tokens"]) for event in events for choice in event["choices"]]
    assert sum(tokens) == 16 * 480
    assert len(events) < 16 * 480, "what had come in the meantime came together"
