"""`loire serve --replicas ray` over HTTP, whatever happens behind it: `make test-ray`."""

import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from transformers import AutoModelForCausalLM

from support.adapter_files import adapter_tensors, save_adapter
from support.server_process import Server, start, wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'loire[ray]'"),
]

LOAD_S = 400
"""Most seconds for replicas on a busy machine."""
REPLICAS = 3
TRAPS = ("msgspec", "psutil", "torch", "numpy", "tokenizers", "sitecustomize")
"""Modules in the folder in which the server is started: no process of the cluster runs them."""
NUM_REQUESTS, NUM_KILLS, NUM_CLIENTS = 500, 20, 8
ENGINE = {"dtype": "float32", "num_threads": 1, "kv_cache_memory_bytes": 8_000_000}
FLAGS = ("--dtype", "float32", "--num-threads", "1", "--kv-cache-memory", "8MB")
DEPLOY = """
import json, sys
from loire.fleet.ray.auth import require_token
require_token()
from ray import serve
from loire.fleet.ray.app import build
from loire.fleet.ray.args import APP, Args
from loire.fleet.ray.cluster import connect
connect()
serve.run(build(Args(**json.loads(sys.argv[1]))), name=APP, route_prefix=None)
"""
"""What `serve deploy` does, without Ray's dashboard."""


class Fleet:
    """A server, and the processes behind it."""

    def __init__(self, server: Server, model: Path) -> None:
        self.server = server
        self.model = model

    def actors(self) -> list[psutil.Process]:
        """Ray's processes that hold a replica."""
        children = psutil.Process(self.server.process.pid).children(recursive=True)
        return [process for process in children if "ServeReplica:loire" in _command(process)]

    def engines(self) -> list[psutil.Process]:
        """Processes that compute."""
        found = [child for actor in self.actors() for child in _children(actor)]
        return [process for process in found if "loire.engine.worker" in _command(process)]

    def busy_engine(self) -> psutil.Process:
        """The one that has used the processor most since a moment ago."""
        before = {engine: _cpu_s(engine) for engine in self.engines()}
        time.sleep(0.2)
        return max(before, key=lambda engine: _cpu_s(engine) - before[engine])

    def busy_actor(self) -> psutil.Process:
        """The one around it."""
        busy = self.busy_engine()
        return next(actor for actor in self.actors() if busy in _children(actor))

    def deploy(self, num_replicas: int, **options: Any) -> "subprocess.Popen[bytes]":
        """Begin to change how many replicas there are, or what they are."""
        args = {
            "model": str(self.model),
            "options": ENGINE | options,
            "replicas": num_replicas,
            "num_cpus": 1.0,
        }
        environment = os.environ | {"RAY_ADDRESS": "auto"}
        return subprocess.Popen([sys.executable, "-c", DEPLOY, json.dumps(args)], env=environment)

    async def text(
        self, seed: int, num_tokens: int = 200, after: Callable[[], None] | None = None, **more: Any
    ) -> str:
        """What a stream says, checked to be whole. after: done once a third of it has come."""
        body = {
            "model": str(self.model),
            "prompt": f"once upon a time {seed % 7}",
            "max_tokens": num_tokens,
            "temperature": 0.9,
            "seed": seed,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
            **more,
        }
        text, num = "", 0
        async with (
            httpx.AsyncClient(timeout=LOAD_S) as client,
            client.stream("POST", f"{self.server.url}/v1/completions", json=body) as answer,
        ):
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                for choice in chunk["choices"]:
                    text += choice["text"]
                    num += len(choice["token_ids"] or ())
                if after is not None and num >= num_tokens // 3:
                    # Beside the loop, which goes on reading.
                    asyncio.get_running_loop().run_in_executor(None, after)
                    after = None
        assert num == num_tokens, "nothing is lost, and nothing comes twice"
        return text


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _cpu_s(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:
        return 0.0


@pytest.fixture(scope="module")
def fleet(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if set(psutil.net_if_addrs()) != {"lo"}:
        pytest.skip("there is a network: run `make test-ray`")
    adapters = tmp_path_factory.mktemp("adapters")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    save_adapter(adapters / "style", adapter_tensors(model, 4), 4)
    # Whoever changes the fleet needs the cluster's token.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 16}')  # else no replica without a core
        flags = ("--replicas", f"ray:{REPLICAS}", "--lora-root", str(adapters), *FLAGS)
        downloaded = tmp_path_factory.mktemp("downloaded")
        for name in TRAPS:
            code = f"open({str(downloaded / 'RAN')!r}, 'a').write(__name__ + ' ')"
            (downloaded / f"{name}.py").write_text(code)
        server = start(tiny_llama, *flags, within_s=LOAD_S, folder=downloaded)
        try:
            fleet = Fleet(server, tiny_llama)
            wait_for(lambda: _is_ready(server), LOAD_S)
            wait_for(lambda: len(fleet.engines()) == REPLICAS, LOAD_S)
            yield fleet
            assert not (downloaded / "RAN").exists(), (downloaded / "RAN").read_text()
        finally:
            server.process.send_signal(signal.SIGTERM)
            try:
                assert server.process.wait(60) == 0, "".join(server.log[-30:])
                assert "SIGTERM received" not in "".join(server.log), "Ray would abort it soon"
            finally:
                server.process.kill()


def _is_ready(server: Server) -> bool:
    assert server.process.poll() is None, "".join(server.log)
    return httpx.get(f"{server.url}/health/ready", timeout=60).status_code == 200


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 1400)

    asyncio.run(limited())


def test_streams_survive_kills_of_anything(fleet: Fleet) -> None:
    async def test() -> None:
        undisturbed = await fleet.text(1)
        assert await fleet.text(1) == undisturbed

        def kill_engine() -> None:
            fleet.busy_engine().kill()

        def kill_actor() -> None:
            fleet.busy_actor().kill()

        def kill_all() -> None:
            for actor in fleet.actors():
                actor.kill()

        def stop(process: psutil.Process) -> None:
            process.suspend()
            stopped.append(process)

        def stop_engine() -> None:
            stop(fleet.busy_engine())

        def stop_actor() -> None:
            stop(fleet.busy_actor())

        stopped: list[psutil.Process] = []
        for disturb in (stop_engine, stop_actor, kill_engine, kill_actor, kill_all):
            started_s = time.monotonic()
            assert await fleet.text(1, after=disturb) == undisturbed, disturb.__name__
            print(f"{disturb.__name__}: the stream took {time.monotonic() - started_s:.1f} s")
            while stopped:  # it moves again, and what it has to say is out of date
                stopped.pop().resume()
                assert await fleet.text(1) == undisturbed

        # An adapter reaches replicas that did not hear of it when it was loaded.
        load = {"lora_name": "style", "lora_path": "style"}
        async with httpx.AsyncClient(base_url=fleet.server.url, timeout=LOAD_S) as client:
            loaded = await client.post("/v1/load_lora_adapter", json=load)
            assert loaded.status_code == 200, loaded.text
            styled = await fleet.text(1, model="style")
            assert styled != undisturbed
            assert await fleet.text(1, after=kill_all, model="style") == styled
            await client.post("/v1/unload_lora_adapter", json={"lora_name": "style"})
            gone = await client.post("/v1/completions", json={"model": "style", "prompt": "x"})
            assert gone.status_code == 404

    run(test)


def test_streams_move_when_the_fleet_shrinks_and_is_updated(fleet: Fleet) -> None:
    async def test() -> None:
        undisturbed = await fleet.text(2)

        async def while_streaming(change: "subprocess.Popen[bytes]") -> None:
            while change.poll() is None:
                texts = await asyncio.gather(*(fleet.text(2) for _ in range(3)))
                assert texts == [undisturbed] * 3
            assert change.returncode == 0

        await while_streaming(fleet.deploy(1))
        wait_for(lambda: len(fleet.engines()) == 1, LOAD_S)
        before = {engine.pid for engine in fleet.engines()}
        # Another option makes Ray replace all replicas: a rolling update.
        await while_streaming(fleet.deploy(REPLICAS, max_num_seqs=64))
        wait_for(lambda: len(fleet.engines()) == REPLICAS, LOAD_S)
        assert not before & {engine.pid for engine in fleet.engines()}
        assert await fleet.text(2) == undisturbed

    run(test)


def test_nothing_is_lost_or_comes_twice_through_many_kills(fleet: Fleet) -> None:
    chance = random.Random(18)

    async def test() -> None:
        expected = [await fleet.text(seed, 12) for seed in range(10)]
        waiting = iter(range(NUM_REQUESTS))
        num_done, num_kills = 0, 0

        async def ask() -> None:
            nonlocal num_done
            for number in waiting:
                seed = number % len(expected)
                assert await fleet.text(seed, 12) == expected[seed]
                num_done += 1

        async def kill() -> None:
            nonlocal num_kills
            while num_kills < NUM_KILLS:
                at = (num_kills + chance.random()) * NUM_REQUESTS / (NUM_KILLS + 1)
                while num_done < at:
                    await asyncio.sleep(0.01)
                # An engine, or Ray's process around it.
                victims = fleet.engines() if chance.random() < 0.7 else fleet.actors()
                if victims:
                    chance.choice(victims).kill()
                    num_kills += 1
                else:
                    await asyncio.sleep(0.1)

        await asyncio.gather(kill(), *(ask() for _ in range(NUM_CLIENTS)))
        assert (num_done, num_kills) == (NUM_REQUESTS, NUM_KILLS)

    run(test)
