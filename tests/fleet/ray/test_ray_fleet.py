"""A fleet on a real Ray cluster of this machine: `make test-ray` runs it in a network of its own.

Ray's ports are open beyond loopback, so nothing here runs where there is any other interface.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from loire.base.sampling import SamplingParams
from loire.cli.main import main
from loire.fleet.ray.args import Args

# Ray is not imported here: it reads its authentication mode when it is.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'loire[ray]'"),
]

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "num_threads": 1,
    "kv_cache_memory_bytes": 8_000_000,
    "seed": 1,
}
PARAMS = SamplingParams(max_tokens=200, temperature=0.9, seed=5, ignore_eos=True, n=2)


@dataclass
class Fleet:
    """A front on a cluster of its own."""

    client: Any
    handle: Any

    async def texts(
        self, prompt: str, after: Callable[[int], None] = lambda num: None
    ) -> list[str]:
        """The texts of a prompt. after: told how many outputs have come."""
        submission = self.client.frontend.prompt(self.client.next_id(), prompt, PARAMS)
        texts, num = ["", ""], 0
        async with aclosing(self.client.stream(submission)) as outputs:
            async for output in outputs:
                num += 1
                for completion in output.outputs:
                    texts[completion.index] += completion.text
                after(num)
        return texts

    async def processes(self) -> dict[str, tuple[int, int]]:
        """Replica -> (Ray's process, the engine's)."""
        from loire.fleet.ray.front import broadcast

        return {
            name: (pid, engine) for name, pid, engine in await broadcast(self.handle, "processes")
        }

    def busy(self) -> str:
        """A replica that has requests."""
        link = self.client.link
        return next(r for r in link.names if link.num_requests_of(r))

    async def until(self, num_replicas: int) -> None:
        while len(self.client.link.replicas) != num_replicas:
            await asyncio.sleep(0.1)


@asynccontextmanager
async def fleet(model: Path, **args: Any) -> AsyncIterator[Fleet]:
    if set(psutil.net_if_addrs()) != {"lo"}:
        pytest.skip("there is a network: run `make test-ray`")
    from loire.fleet.ray.auth import require_token

    require_token()
    from loire.fleet.ray.front import join_fleet

    settled = {"model": str(model), "options": OPTIONS, "num_cpus": 0.1, **args}
    client = await join_fleet(Args(**settled))
    try:
        here = Fleet(client, client.handle)
        await here.until(settled["replicas"])
        yield here
    finally:
        await client.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 500)

    asyncio.run(limited())


def test_streams_survive_whatever_is_killed(tiny_llama: Path) -> None:
    async def test() -> None:
        async with fleet(tiny_llama, replicas=2) as here:
            undisturbed = await here.texts("once upon a time")
            pids = await here.processes()

            def kill(part: int) -> Callable[[int], None]:
                return lambda num: (
                    os.kill(pids[here.busy()][part], signal.SIGKILL) if num == 60 else None
                )

            assert await here.texts("once upon a time", kill(0)) == undisturbed  # Ray's actor
            await here.until(2)
            pids = await here.processes()
            assert await here.texts("once upon a time", kill(1)) == undisturbed  # the engine
            await here.until(2)
            assert here.client.link.num_restarts == 2

            def kill_all(num: int) -> None:
                if num == 60:
                    for pid, _ in pids.values():
                        os.kill(pid, signal.SIGKILL)

            pids = await here.processes()
            assert await here.texts("once upon a time", kill_all) == undisturbed
            many = [asyncio.create_task(here.texts("once upon a time")) for _ in range(8)]
            assert await asyncio.gather(*many) == [undisturbed] * 8

            # A client that leaves frees what it had.
            gone = asyncio.create_task(here.texts("another time"))
            while not here.client.link.num_requests:
                await asyncio.sleep(0.01)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            assert here.client.link.num_requests == 0

    run(test)


def test_files_are_those_that_ray_takes(capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")
    from loire.fleet.ray.auth import require_token

    require_token()
    from ray.serve.schema import ServeDeploySchema

    from loire.fleet.ray.app import build

    assert main(["deploy", "smollm2", "--replicas", "2", "--max-replicas", "8"]) == 0
    kuberay = Path(__file__).parents[3] / "deploy/kuberay.yaml"
    services = [d for d in yaml.safe_load_all(kuberay.read_text()) if d["kind"] == "RayService"]
    files = [capsys.readouterr().out, *(service["spec"]["serveConfigV2"] for service in services)]
    assert len(files) == 2
    for file in files:
        [application] = ServeDeploySchema(**yaml.safe_load(file)).applications
        build(Args(**application.args))


def test_there_are_more_replicas_when_requests_wait(tiny_llama: Path) -> None:
    async def test() -> None:
        # What waits for one of two slots is more than ten tokens.
        options = OPTIONS | {"max_num_seqs": 2}
        more = {"options": options, "max_replicas": 2, "queued_tokens": 10.0}
        async with fleet(tiny_llama, replicas=1, **more) as here:
            undisturbed = await here.texts("once upon a time")
            stop = asyncio.Event()

            async def ask() -> None:
                while not stop.is_set():
                    assert await here.texts("once upon a time") == undisturbed

            asking = [asyncio.create_task(ask()) for _ in range(6)]
            await here.until(2)
            stop.set()
            await asyncio.gather(*asking)

    run(test)


def test_replicas_without_room_wait_and_say_so(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async def enter() -> None:
            async with fleet(tiny_llama, replicas=2, num_cpus=1000.0):
                raise AssertionError("there is no such machine")

        entering = asyncio.create_task(enter())
        while caplog.text.count("room for 0 (none has 1000 CPU)") < 3 and not entering.done():
            await asyncio.sleep(0.1)
            if "loire.fleet.ray.deployment" in sys.modules:
                monkeypatch.setattr("loire.fleet.ray.deployment.TELL_S", 1.0)
        assert "asking Ray for 2 replicas, 1000 CPU for each" in caplog.text
        entering.cancel()  # as Ctrl-C does
        with pytest.raises(asyncio.CancelledError):
            await entering

    with caplog.at_level("INFO", "loire.fleet"):
        run(test)


def test_streams_move_when_replicas_leave(tiny_llama: Path) -> None:
    async def test() -> None:
        async with fleet(tiny_llama, replicas=3) as here:
            from ray import serve

            from loire.fleet.ray.app import build
            from loire.fleet.ray.args import APP

            undisturbed = await here.texts("once upon a time")

            def deploy(num_replicas: int, **more: Any) -> None:
                options = OPTIONS | more
                args = Args(
                    model=str(tiny_llama), options=options, num_cpus=0.1, replicas=num_replicas
                )
                serve.run(build(args), name=APP, route_prefix=None)

            async def while_streaming(change: Callable[[], None]) -> None:
                changing = asyncio.create_task(asyncio.to_thread(change))
                while not changing.done():
                    streams = [
                        asyncio.create_task(here.texts("once upon a time")) for _ in range(4)
                    ]
                    assert await asyncio.gather(*streams) == [undisturbed] * 4
                await changing

            await while_streaming(lambda: deploy(1))
            await here.until(1)
            # Another option makes Ray replace the replicas: a rolling update.
            await while_streaming(lambda: deploy(2, max_num_seqs=64))
            await here.until(2)
            assert await here.texts("once upon a time") == undisturbed
            assert here.client.link.num_restarts == 0

    run(test)
