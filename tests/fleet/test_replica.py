"""Real engines as replicas of a fleet: text in, text out, through deaths and drains."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from loire.base.config import EngineOptions
from loire.base.errors import EngineError
from loire.base.sampling import SamplingParams
from loire.checkpoint.open import open_checkpoint
from loire.engine.requests import Origin
from loire.engine.wire import Submit, WireError
from loire.fleet.client import FleetClient, frontend_of
from loire.fleet.door import Address, DoorChannel, ReplicaDoor
from loire.fleet.link import FleetLink
from loire.fleet.messages import WIRE_VERSION, Joined, encode
from loire.fleet.model_digest import model_digest
from loire.fleet.placement import PrefixChains
from loire.fleet.replica import EngineReplica
from support.adapter_files import adapter_tensors, save_adapter
from support.fake_replica import config
from support.tiny_models import save_tiny_llama

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "num_threads": 1,
    "kv_cache_memory_bytes": 8_000_000,
    "max_num_batched_tokens": 256,
}
PARAMS = SamplingParams(max_tokens=400, temperature=0.9, seed=5, ignore_eos=True, n=2)


class Fleet:
    """Replicas, and a client that is attached to them."""

    def __init__(
        self,
        replicas: list[EngineReplica],
        doors: list[ReplicaDoor],
        addresses: list[Address],
        client: FleetClient,
    ) -> None:
        self.replicas = replicas
        self.doors, self.addresses = doors, addresses
        self.client = client
        self.follows = [self.follow(client.link, number) for number in range(len(replicas))]

    def follow(self, link: FleetLink, number: int) -> "asyncio.Task[None]":
        """Attach a front to one of the replicas."""
        channel = DoorChannel(self.replicas[number].name, self.addresses[number], link.name)
        return asyncio.create_task(link.follow(channel))

    async def texts(
        self, prompt: str, after: Callable[[int], None] = lambda num: None, adapter: str = ""
    ) -> list[str]:
        """The texts of a prompt. after: told how many outputs have come."""
        origin = Origin(adapter=adapter)
        frontend, request_id = self.client.frontend, self.client.next_id()
        submission = frontend.prompt(request_id, prompt, PARAMS, origin=origin)
        texts, num = ["", ""], 0
        async with aclosing(self.client.stream(submission)) as outputs:
            async for output in outputs:
                num += 1
                for completion in output.outputs:
                    texts[completion.index] += completion.text
                after(num)
        return texts


@asynccontextmanager
async def fleet(model: Path, num_replicas: int) -> AsyncIterator[Fleet]:
    made = await asyncio.gather(
        *(
            EngineReplica.create(f"replica-{i}", str(model), EngineOptions(**OPTIONS))
            for i in range(num_replicas)
        )
    )
    doors = [ReplicaDoor(replica) for replica in made]
    try:
        addresses = [await door.open("127.0.0.1") for door in doors]
        first = made[0].joined
        assert first is not None
        checkpoint = open_checkpoint(model)
        frontend = frontend_of(checkpoint, first, EngineOptions())
        client = FleetClient(frontend, first, checkpoint.description)
        here = Fleet(list(made), doors, addresses, client)
        while len(here.client.link.replicas) < num_replicas:
            await asyncio.sleep(0.01)
        yield here
        for door in doors:
            await door.close()
        await asyncio.gather(*here.follows)
        await here.client.close()
    finally:
        await asyncio.gather(*(replica.close() for replica in made))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    faults: list[dict[str, Any]] = []
    """What asyncio would only log."""

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, fault: faults.append(fault))
        await asyncio.wait_for(test(), 200)

    asyncio.run(limited())
    assert faults == []


def test_texts_go_on_elsewhere(tiny_llama: Path) -> None:
    """An engine is killed, then the replica that took over will stop; the last engine stands still
    for a while."""

    async def test() -> None:
        async with fleet(tiny_llama, 2) as here:
            undisturbed = await here.texts("once upon a time")
            link = here.client.link
            assert here.client.link.num_requests == 0
            each = [joined.config.num_blocks for joined in link.replicas]
            assert here.client.config.num_blocks == sum(each)

            def busy() -> int:
                return next(i for i, r in enumerate(here.replicas) if r.num_requests)

            def disturb(num: int) -> None:
                if num == 20:
                    pid = here.replicas[busy()].supervisor.pid
                    assert pid is not None
                    os.kill(pid, signal.SIGKILL)
                # (On a quick machine 60 outputs may come before the loss is noticed.)
                if num >= 60 and link.num_restarts and not drains:
                    drains.append(asyncio.create_task(here.replicas[busy()].drain(60.0)))

            drains: list[asyncio.Task[None]] = []
            assert await here.texts("once upon a time", disturb) == undisturbed
            assert link.num_restarts == 1
            assert drains, "the text ended before the second disturbance"
            await asyncio.gather(*drains)
            assert all(replica.failure is None for replica in here.replicas)

            # With one of them draining, the other takes what comes.
            while len(link.replicas) < 2:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(here.texts("once upon a time"))
            assert await waiting == undisturbed

            # Its engine stands still, and moves again: what it still gives then is nobody's.
            def stop(num: int) -> None:
                if num == 20:
                    pid = here.replicas[busy()].supervisor.pid
                    assert pid is not None
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)

            stopped: list[int] = []
            waiting = asyncio.create_task(here.texts("once upon a time", stop))
            while not stopped or len(link.replicas) > 1:
                await asyncio.sleep(0.01)
            os.kill(stopped[0], signal.SIGCONT)
            assert await waiting == undisturbed
            assert link.num_restarts >= 2

    run(test)


def test_adapters_are_loaded_in_every_replica(tiny_llama: Path, tmp_path: Path) -> None:
    """By two fronts, one of which leaves; texts are those of one engine, through a death."""
    prompt = "once upon a time " * 3
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    path = save_adapter(tmp_path / "style", adapter_tensors(model, 4), 4)

    async def test() -> None:
        async with fleet(tiny_llama, 2) as here:
            link, names = here.client.link, here.client.adapters
            plain = await here.texts(prompt)
            style = await asyncio.to_thread(names.load, "style", path, pinned=True)
            undisturbed = await here.texts(prompt, adapter=style.identity)
            assert undisturbed != plain
            while link.adapters.num_resident < 2:  # pinned: in both, as their next news tell
                await asyncio.gather(*(here.texts(f"{number}") for number in range(3)))
            other = FleetLink(lambda updates: None)
            request = here.client.frontend.prompt("x", prompt, PARAMS).request
            cached = PrefixChains(request).keys(link._placement.replicas[0])
            assert cached
            holder = next(i for i, r in enumerate(here.replicas) if {*cached} <= {*r._found})
            following = here.follow(other, holder)
            other.announce(style.announced(pinned=False))
            while not other.replicas:
                await asyncio.sleep(0.01)
            # It is told what others left in the cache, before it sends anything.
            [state] = other._placement._states.values()
            assert set(cached) <= set(state.held)

            def disturb(num: int) -> None:
                if num == 20:
                    following.cancel()  # the name that the other front has goes with it
                    names.unload("style")
                    [busy] = [r for r in here.replicas if r.num_requests]
                    assert busy.supervisor.pid is not None
                    os.kill(busy.supervisor.pid, signal.SIGKILL)

            found = await here.texts(prompt, disturb, adapter=style.identity)
            assert found == undisturbed
            assert link.num_restarts == 1
            await asyncio.gather(following, return_exceptions=True)
            # Files that are others now are noticed by what they hold.
            await asyncio.to_thread(names.load, "style", path)
            save_adapter(path, adapter_tensors(model, 4, seed=1), 4)
            changed = await asyncio.to_thread(names.load, "style", path, load_inplace=True)
            texts = await here.texts(prompt, adapter=changed.identity)
            assert texts not in (plain, undisturbed)

    run(test)


def test_what_no_front_of_this_version_says_is_refused(tiny_llama: Path) -> None:
    async def test() -> None:
        async with fleet(tiny_llama, 1) as here:
            [replica] = here.replicas
            with pytest.raises(EngineError, match=r"version 0 .* this replica version 3"):
                await anext(replica.attach("old", 0))
            with pytest.raises(EngineError, match="attached already"):
                await anext(replica.attach(here.client.link.name, WIRE_VERSION))
            with pytest.raises(WireError, match="4 bytes are no messages"):
                replica.deliver(here.client.link.name, b"\x91\x01\x02\x03")
            # Of a front that is not attached nothing is taken.
            request = here.client.frontend.prompt("x/0/r", "hi", PARAMS).request
            replica.deliver("x", encode([Submit(request)]))
            assert replica.num_requests == 0
            assert replica.queued_tokens == 0
            assert replica.occupancy == 0.0

    run(test)


def test_a_front_that_is_gone_leaves_nothing_behind(tiny_llama: Path) -> None:
    async def test() -> None:
        async with fleet(tiny_llama, 1) as here:
            [replica] = here.replicas
            reading = asyncio.create_task(here.texts("once upon a time"))
            while not replica.num_requests:
                await asyncio.sleep(0.01)
            await here.doors[0].close()
            await here.follows[0]
            while replica.num_requests:
                await asyncio.sleep(0.01)
            assert here.client.link.num_waiting == 1
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert here.client.link.num_requests == 0

    run(test)


def test_models_have_names_by_content(tiny_llama: Path, tmp_path: Path) -> None:
    twin = save_tiny_llama(tmp_path / "twin")
    other = save_tiny_llama(tmp_path / "other", seed=1)
    digests = [model_digest(open_checkpoint(path)) for path in (tiny_llama, twin, other)]
    assert digests[0] == digests[1] != digests[2]
    tokenizer = twin / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert model_digest(open_checkpoint(twin)) != digests[0]


def test_replicas_must_fit_the_first_one(tiny_llama: Path) -> None:
    first = Joined("a", config(), "", "model")

    async def test() -> None:
        checkpoint = open_checkpoint(tiny_llama)
        frontend = frontend_of(checkpoint, first, EngineOptions(system="You are brief."))
        assert "You are brief." in frontend.render([{"role": "user", "content": "hi"}], (), {})
        client = FleetClient(frontend, first, checkpoint.description)
        client._check(first)
        with pytest.raises(EngineError, match="serves another model"):
            client._check(Joined("b", config(), "", "other"))
        with pytest.raises(EngineError, match="window is 100 tokens, but requests here may have 2"):
            client._check(Joined("b", replace(config(), max_model_len=100), "", "model"))

    run(test)
