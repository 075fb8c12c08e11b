"""A real `loire serve` process with keys and limits, and the official client before it."""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loire.cli.main import main
from support.server_process import START_S, Server, start, wait_for

ALICE, BOB, ROOT = "alice-key-0123456789", "bob-key-0123456789ab", "root-key-0123456789a"
SECRET = "a secret that nobody should read in the log"
TEXT: Any = {"model": "tiny", "prompt": SECRET, "max_tokens": 3, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def server(tiny_llama: Path, keys: Path) -> Iterator[Server]:
    keys.write_text(f"alice:{ALICE}\nbob:{BOB} requests-per-minute=2\n")
    admins = keys.with_name("admins")
    admins.write_text(f"root:{ROOT}\n")
    running = start(
        tiny_llama, "--served-model-name", "tiny", "--dtype", "float32", "--num-threads", "1",
        "--api-key-file", str(keys), "--admin-key-file", str(admins), "--log-format", "json",
        "--audit-log", str(keys.with_name("audit")),
    )  # fmt: skip
    try:
        wait_for(lambda: httpx.get(f"{running.url}/health").status_code == 200, START_S)
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def client(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def entries(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in "".join(server.log).splitlines()]


def test_the_openai_client_with_and_without_a_key(server: Server) -> None:
    with client(server, ALICE) as alice, client(server, "wrong") as stranger:
        answer = alice.completions.with_raw_response.create(**TEXT)
        assert answer.parse().usage.completion_tokens == 3
        call_id = answer.headers["x-request-id"]
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.completions.create(**TEXT)
        assert caught.value.code == "invalid_api_key"
    admin = {"Authorization": f"Bearer {ROOT}"}
    life = httpx.get(f"{server.url}/admin/requests/{call_id}", headers=admin).json()
    assert life["tenant"] == "alice"
    assert life["requests"][0]["steps"] == 3
    wait_for(lambda: any(e.get("request_id") == call_id for e in entries(server)), START_S)
    [entry] = [e for e in entries(server) if e.get("request_id") == call_id]
    assert (entry["tenant"], entry["output_tokens"]) == ("alice", 3)


def test_the_openai_client_is_told_to_wait(server: Server) -> None:
    with client(server, BOB) as bob:
        for _ in range(2):
            list(bob.completions.create(stream=True, **TEXT))
        with pytest.raises(openai.RateLimitError) as caught:
            bob.completions.create(stream=True, **TEXT)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    own = httpx.get(f"{server.url}/metrics", headers={"x-api-key": ALICE}).text
    assert "bob" not in own
    metrics = httpx.get(f"{server.url}/metrics", headers={"x-api-key": ROOT}).text
    assert 'loire_rejections_total{reason="rate_limit_exceeded"} 1.0' in metrics
    assert 'loire_requests_total{outcome="completed",tenant="bob"} 2.0' in metrics


def test_neither_keys_nor_prompts_are_in_the_log(server: Server) -> None:
    log = "".join(server.log)
    assert "3 API keys" in log
    for word in (ALICE, BOB, ROOT, SECRET):
        assert word not in log


def test_other_machines_are_not_let_in_without_a_key(tiny_llama: Path) -> None:
    command = [sys.executable, "-m", "loire", "serve", str(tiny_llama), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 1
    assert "--api-key-file" in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_and_the_audit_log_of_a_running_server(server: Server, keys: Path) -> None:
    def status(key: str) -> int:
        return httpx.get(f"{server.url}/v1/models", headers={"x-api-key": key}).status_code

    assert main(["keys", "add", "carol", "--file", str(keys)]) == 0
    carol = "carol-key-0123456789"
    keys.write_text(keys.read_text() + f"dave:{carol}\n")
    wait_for(lambda: status(carol) == 200, START_S)
    assert main(["keys", "revoke", "dave", "--file", str(keys)]) == 0
    wait_for(lambda: status(carol) == 401, START_S)
    audit = keys.with_name("audit")
    wait_for(lambda: '"status": 401' in audit.read_text(), START_S)
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {line["tenant"] for line in lines} >= {"alice", "bob", "dave", None}
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600
    for secret in (SECRET, ALICE, carol):
        assert secret not in audit.read_text()
