"""A real server with adapters: named as models, chosen by `model=`, kept over an engine's death."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from transformers import AutoModelForCausalLM

from loire.cli.main import main
from support.adapter_files import adapter_tensors, save_adapter
from support.server_process import START_S, Server, start, wait_for

GREEDY: Any = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One, two and three, of other ranks and weights."""
    folder = tmp_path_factory.mktemp("adapters")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for number, name in enumerate(("one", "two", "three"), start=1):
        tensors = adapter_tensors(model, 4 * number, seed=number)
        save_adapter(folder / name, tensors, 4 * number)
    return folder


@pytest.fixture(scope="module")
def server(tiny_llama: Path, folder: Path) -> Iterator[Server]:
    running = start(
        tiny_llama, "--served-model-name", "tiny", "--dtype", "float32", "--num-threads", "1",
        "--lora-modules", f"one={folder / 'one'}",
        f'{{"name": "two", "path": "{folder / "two"}", "base_model_name": "tiny"}}',
        "--lora-root", str(folder), "--lora-memory", "1MB",
    )  # fmt: skip
    try:
        wait_for(lambda: httpx.get(f"{running.url}/health").status_code == 200, START_S)
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def complete(server: Server, model: str) -> str:
    with server.client as client:
        return client.completions.create(model=model, prompt="abc", **GREEDY).choices[0].text


def test_they_are_models(server: Server) -> None:
    with server.client as client:
        listed = {model.id: model for model in client.models.list()}
        assert [*listed] == ["tiny", "one", "two"]
        assert getattr(listed["one"], "parent", None) == "tiny"
        assert not hasattr(listed["tiny"], "parent")
        assert client.models.retrieve("two").id == "two"
        with pytest.raises(openai.NotFoundError, match="'three' is not served here"):
            client.completions.create(model="three", prompt="abc")


def test_every_route_knows_them(server: Server) -> None:
    texts = {name: complete(server, name) for name in ("tiny", "one", "two")}
    assert len(set(texts.values())) == 3
    messages: Any = [{"role": "user", "content": "hello"}]
    with server.client as client:
        chats = [
            client.chat.completions.create(model=name, messages=messages, **GREEDY)
            for name in texts
        ]
        assert len({chat.choices[0].message.content for chat in chats}) == 3
        assert [chat.model for chat in chats] == [*texts]
    for path, body in (
        ("/v1/messages", {"max_tokens": 4, "messages": messages}),
        ("/v1/responses", {"max_output_tokens": 4, "input": "hello", "store": False}),
        ("/v1/embeddings", {"input": "hello"}),
        ("/tokenize", {"prompt": "hello"}),
    ):
        answer = httpx.post(f"{server.url}{path}", json={"model": "one", **body}, timeout=START_S)
        assert answer.status_code == 200, answer.text


def test_by_hand_while_it_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """`loire adapters`; what is loaded so is there after the engine's death, too."""

    def adapters(*arguments: str) -> str:
        assert main(["adapters", *arguments, "--url", server.url]) == 0
        return capsys.readouterr().out

    assert "Success" in adapters("load", "four", "three", "--pinned")
    text = complete(server, "four")
    assert text not in (complete(server, "one"), complete(server, "tiny"))
    kill_engine(server)
    assert complete(server, "four") == text
    shown = adapters()
    assert "four  rank 12, three, pinned" in shown
    assert "3 adapters, " in shown
    assert "Success" in adapters("load", "four", "one", "--in-place")
    assert complete(server, "four") == complete(server, "one")
    assert "Success" in adapters("unload", "four")
    assert main(["adapters", "unload", "four", "--url", server.url]) == 1
    assert "The lora adapter 'four' cannot be found." in capsys.readouterr().err
    with server.client as client, pytest.raises(openai.NotFoundError):
        client.completions.create(model="four", prompt="abc")
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'vllm:lora_requests_info{max_lora="4096"' in metrics
    assert "loire_adapters_loaded " in metrics


def test_another_engine_knows_them_too(server: Server) -> None:
    before = complete(server, "two")
    kill_engine(server)
    assert complete(server, "two") == before
    assert complete(server, "one") != before


def kill_engine(server: Server) -> None:
    pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not pids.exists():
        pytest.skip("no way to find the engine's process here")
    engine = next(
        int(pid)
        for pid in pids.read_text().split()
        if b"loire.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(engine, signal.SIGKILL)
