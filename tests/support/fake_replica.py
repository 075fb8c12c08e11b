"""Replicas without processes, and a front that steps them in a known order."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from loire.base.cache_geometry import one_group
from loire.base.config import EngineConfig
from loire.base.messages import AnnouncedAdapter, EngineRequest, SequenceUpdate
from loire.base.sampling import SamplingParams
from loire.engine.core import EngineCore
from loire.engine.wire import Abort, Announce, Submit
from loire.fleet.link import FleetLink
from loire.fleet.messages import (
    AdapterChecked,
    Begun,
    Blocks,
    FromReplica,
    Joined,
    Lost,
    News,
    ToReplica,
    encode,
    read_from_replica,
    read_to_replica,
)
from loire.scheduling.presets import build_scheduler
from support.fake_execution import FakeExecutor, expected_tokens

WINDOW = 256
BLOCK_SIZE = 4
AHEAD_S = 1000.0
"""Of replicas' clocks, before the front's."""
HARMFUL = 63
"""A prompt that begins so kills the engine which computes it."""


def config(name: str = "m", window: int = WINDOW) -> EngineConfig:
    return EngineConfig(
        model=name, dtype="float32", kv_cache_dtype="float32", device="cpu", max_model_len=window,
        max_num_seqs=8, max_num_batched_tokens=64, geometry=one_group(BLOCK_SIZE), num_blocks=256,
        enable_prefix_caching=True, policy="paged", reserve="max-tokens",
        pipeline_depth=1, seed=None,
    )  # fmt: skip


class FakeReplica:
    """A ReplicaChannel to an engine without a model. Everything crosses as bytes."""

    def __init__(self, name: str, *, numbers: str = "") -> None:
        self.name = name
        self.joined = Joined(name, config(), numbers, "digest")
        self.core: EngineCore | None = None
        self.stands_still = False
        self.submits: list[EngineRequest] = []
        self.aborts: list[Abort] = []
        self.announced: list[AnnouncedAdapter] = []
        self.heard: list[ToReplica] = []
        """Everything, in order."""
        self.missing: set[str] = set()
        """Adapters that are not on its machine."""
        self.told = b""
        """Names of all prefixes that were ever found."""
        self.checks = True
        """Whether it answers what it is told of adapters."""
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.join()

    def join(self) -> None:
        """A new engine is there."""
        self.stands_still = False
        self.core = EngineCore(
            build_scheduler(self.joined.config, clock=self._clock, notes_names=True),
            FakeExecutor(self.joined.config.num_blocks, one_group(BLOCK_SIZE)),
            on_begin=lambda ids: self.say(Begun(tuple(ids))),
        )
        self.say(self.joined)

    def lose(self) -> None:
        """The engine dies, the replica does not."""
        self.core = None
        self.say(Lost("killed by a test"))

    def stand_still(self) -> None:
        """The engine is given up, but is still there."""
        self.stands_still = True
        self.say(Lost("stopped by a test"))

    def move_again(self) -> None:
        """The engine has one more step of what was given up, and is used again."""
        assert self.core is not None
        self.stands_still = False
        self.step()
        for request in self.submits:
            self.core.abort(request.request_id)
        self.say(self.joined)

    def kill(self) -> None:
        """The replica is gone."""
        self.core = None
        self._queue.put_nowait(None)

    def say(self, message: FromReplica) -> None:
        self._queue.put_nowait(encode([message]))

    def check(self, identity: str) -> None:
        """Answer whether an adapter can be served."""
        refusal = f"{self.name} has no such file" if identity in self.missing else ""
        self.say(AdapterChecked(identity, refusal))

    @property
    def num_unread(self) -> int:
        return self._queue.qsize()

    def step(self) -> None:
        """One step, if there is something to do."""
        if self.core is None or self.stands_still or not self.core.has_work:
            return
        harmful = self._harmful()
        updates = self.core.step()
        begun = self.core.scheduler.running
        if any(s.request.message.request_id in harmful for s in begun) or any(
            update.request_id in harmful for update in updates
        ):
            self.lose()
            return
        found, gone = self.core.scheduler.allocator.take_names()
        if found or gone:
            self.told += found
            self.say(Blocks(found, gone))
        in_use = self.core.scheduler.allocator.counts.in_use
        self.say(News(tuple(updates), self._clock(), self.core.scheduler.num_requests, in_use))

    def _harmful(self) -> set[str]:
        return {r.request_id for r in self.submits if r.prompt_token_ids[0] == HARMFUL}

    def _clock(self) -> float:
        return time.monotonic() + AHEAD_S

    # --- a ReplicaChannel -------------------------------------------------------------------

    async def messages(self) -> AsyncIterator[FromReplica]:
        while (data := await self._queue.get()) is not None:
            for message in read_from_replica(data):
                yield message

    def send(self, *messages: ToReplica) -> None:
        for message in read_to_replica(encode(messages)):
            if self.stands_still:
                continue
            self.heard.append(message)
            match message:
                case Announce(adapter):
                    self.announced.append(adapter)
                    if self.checks:
                        self.check(adapter.identity)
                case Submit(request, ended):
                    self.submits.append(request)
                    if self.core is not None:
                        self.core.add(request)
                        for choice in ended:
                            self.core.abort_choice(request.request_id, choice)
                case Abort(request_id, choice):
                    self.aborts.append(message)
                    if self.core is not None and choice is None:
                        self.core.abort(request_id)
                    elif self.core is not None:
                        self.core.abort_choice(request_id, choice)


class FakeFleet:
    """A link and its replicas. Use it within a running event loop, and close() it there."""

    def __init__(self, *names: str) -> None:
        self.link = FleetLink(self._take)
        self.replicas: dict[str, FakeReplica] = {}
        self.requests: dict[str, EngineRequest] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.ends: dict[tuple[str, int], list[str]] = {}
        self.updates: list[SequenceUpdate] = []
        self._follows: dict[str, asyncio.Task[None]] = {}
        for name in names:
            self.add(name)

    def add(self, name: str, **more: str) -> FakeReplica:
        replica = self.replicas[name] = FakeReplica(name, **more)
        self._follows[name] = asyncio.create_task(self.link.follow(replica))
        return replica

    async def kill(self, name: str) -> None:
        self.replicas.pop(name).kill()
        await self._follows.pop(name)
        await self.settle()

    def submit(
        self,
        request_id: str,
        prompt: Sequence[int] = (1, 2, 3),
        *,
        n: int = 1,
        max_tokens: int = 12,
        min_tokens: int = 0,
        adapter: str = "",
    ) -> EngineRequest:
        params = SamplingParams(max_tokens=max_tokens, min_tokens=min_tokens, n=n)
        seed = hash(tuple(prompt)) % 2**32
        request = EngineRequest(request_id, tuple(prompt), params, seed=seed, adapter=adapter)
        self.requests[request_id] = request
        self.link.submit([request])
        return request

    async def settle(self) -> None:
        """Until everything that was said has been heard, and answered."""
        quiet = 0
        while quiet < 3:
            await asyncio.sleep(0)
            unread = any(replica.num_unread for replica in self.replicas.values())
            quiet = 0 if unread else quiet + 1

    async def round(self) -> None:
        """A step of every replica."""
        await self.settle()
        for replica in tuple(self.replicas.values()):
            replica.step()
        await self.settle()

    async def run(self, most: int = 2000) -> None:
        """Until all requests have ended."""
        while self.link.num_requests:
            await self.round()
            most -= 1
            assert most, "requests do not end"

    async def close(self) -> None:
        self.link.close()
        for name in tuple(self.replicas):
            await self.kill(name)

    def check(self, *failed: str) -> None:
        """Every choice of every request ended once, with the text that it has undisturbed; those
        that failed with an error, but for choices that had ended before."""
        ends_of_failed = [ends for key, ends in self.ends.items() if key[0] in failed]
        assert ends_of_failed.count(["error"]) >= len(failed)
        for request_id, request in self.requests.items():
            for choice in range(request.params.n):
                key = (request_id, choice)
                if request_id in failed and self.ends[key] == ["error"]:
                    continue
                tokens, finish = expected_tokens(request, choice, WINDOW)
                assert self.tokens[key] == tokens, key
                assert self.ends[key] == [finish], key

    def _take(self, updates: Sequence[SequenceUpdate]) -> None:
        for update in updates:
            self.updates.append(update)
            key = (update.request_id, update.choice)
            self.tokens.setdefault(key, []).extend(update.token_ids)
            if update.finish_reason is not None:
                self.ends.setdefault(key, []).append(update.finish_reason)
