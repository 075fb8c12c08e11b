"""An engine that several fronts are attached to: the replica's side of the fleet.

Each front has one long-lived stream of messages from here, and sends its own to deliver(). What
carries them (loire.fleet.door) is not known here. When the engine dies, fronts are told at once,
and go on elsewhere; the next engine begins with nothing. So they are when it stands still; one that
moves again has forgotten what it computed.

Signs of life to the fronts come from the event loop that their messages come from: a replica whose
loop stands still is of no use to them, however well its process lives.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from loire.base.config import EngineOptions
from loire.base.errors import EngineError
from loire.base.messages import SequenceUpdate
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
from loire.engine.pulse import BEAT_S
from loire.engine.supervisor import DEFAULT_SUPERVISION, EngineSupervisor, SupervisorOptions
from loire.engine.wire import Abort, Announce, Beat, LoadModel, Ready, Submit
from loire.fleet.member import front_of
from loire.fleet.messages import (
    WIRE_VERSION,
    Begun,
    Blocks,
    Draining,
    FromReplica,
    Joined,
    Lost,
    News,
    encode,
    read_to_replica,
)
from loire.fleet.model_digest import model_digest
from loire.fleet.replica_adapters import ReplicaAdapters
from loire.memory.prefix_names import split

log = logging.getLogger("loire.fleet")

_T = TypeVar("_T")

MAX_OUTBOX = 100_000
"""Messages that may wait for a front. One that does not read for so long is taken for gone."""
DRAIN_POLL_S = 0.05


@dataclass(slots=True, eq=False)
class _Front:
    """A front that is attached: what it is to be told, and what it has here."""

    outbox: list[FromReplica] = field(default_factory=list)
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    open_ids: set[str] = field(default_factory=set)

    def tell(self, message: FromReplica) -> None:
        self.outbox.append(message)
        self.filled.set()


class EngineReplica:
    """Make it with create(). Used on one event loop."""

    def __init__(self, name: str, supervision: SupervisorOptions = DEFAULT_SUPERVISION) -> None:
        self.name = name
        self.failure: EngineError | None = None
        """Why there will be no engine any more."""
        self._fronts: dict[str, _Front] = {}
        self._joined: Joined | None = None
        self._digest = ""
        self._adapters: ReplicaAdapters
        self._draining = False
        self._found: dict[bytes, None] = {}
        """Names of the prefixes that the engine can find."""
        self.supervisor = EngineSupervisor(
            self._tell_updates,
            self._fail,
            supervision,
            on_begin=self._tell_begun,
            on_ready=self._tell_ready,
            on_lost=self._tell_lost,
            on_names=self._tell_names,
            on_silence=self._tell_silence,
        )
        self._silence_timeout_s = supervision.silence_timeout_s
        self._beating: asyncio.Task[None] | None = None

    @classmethod
    async def create(
        cls,
        name: str,
        model: str,
        options: EngineOptions,
        *,
        supervision: SupervisorOptions = DEFAULT_SUPERVISION,
    ) -> "EngineReplica":
        """Start an engine's process and load a model there. Raises LoireError if that fails."""
        self = cls(name, supervision)
        await self.supervisor.start()
        try:
            path = await asyncio.to_thread(resolve_model, model)
            checkpoint, self._digest = await asyncio.to_thread(_read, path)
            self._adapters = ReplicaAdapters(checkpoint.description, self.supervisor.announce)
            load = LoadModel(str(path), model, options, tells_names=True, beats=True)
            await self.supervisor.load(load)
        except BaseException:
            await self.supervisor.close()
            raise
        self._beating = asyncio.create_task(self._beat())
        return self

    @property
    def joined(self) -> Joined | None:
        """What fronts are told of the engine; None while there is none."""
        return self._joined

    @property
    def num_requests(self) -> int:
        """Of all fronts."""
        return self.supervisor.num_requests

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of requests that nothing is computed of yet."""
        return self.supervisor.num_waiting_tokens

    @property
    def occupancy(self) -> float:
        """Share of slots or of KV memory in use, whichever is larger."""
        if self._joined is None:
            return 0.0
        config = self._joined.config
        running = self.num_requests - self.supervisor.num_waiting
        return max(running / config.max_num_seqs, self.supervisor.blocks_in_use / config.num_blocks)

    async def attach(self, front: str, wire_version: int) -> AsyncGenerator[bytes, None]:
        """Everything that a front is told, from now on. Ending the iterator ends its requests.

        Raises EngineError if it speaks another version, or is attached already.
        """
        if wire_version != WIRE_VERSION:
            raise EngineError(
                f"the front speaks version {wire_version} of the fleet's messages, this replica "
                f"version {WIRE_VERSION}: run the same version of Loire on all machines"
            )
        if front in self._fronts:
            raise EngineError(f"the front {front} is attached already")
        attached = self._fronts[front] = _Front()
        if self._joined is not None:
            attached.tell(self._joined)
        if self._found:
            attached.tell(Blocks(b"".join(self._found)))
        if self._draining:
            attached.tell(Draining())
        try:
            while True:
                await attached.filled.wait()
                attached.filled.clear()
                messages, attached.outbox = attached.outbox, []
                if len(messages) > MAX_OUTBOX:
                    raise EngineError(f"the front {front} did not read {len(messages)} messages")
                yield encode(messages)
        finally:
            del self._fronts[front]
            for request_id in attached.open_ids:
                self.supervisor.abort(request_id)
            self._adapters.leave(front)

    def deliver(self, front: str, data: bytes) -> None:
        """Take what a front sends. Raises WireError if it is nothing that fronts send.

        While there is no engine it is dropped: the front is told so, and goes on elsewhere.
        """
        attached = self._fronts.get(front)
        if attached is None or self._joined is None:
            return
        for message in read_to_replica(data):
            match message:
                case Submit(request, ended_choices):
                    attached.open_ids.add(request.request_id)
                    self.supervisor.submit([request])
                    for choice in ended_choices:
                        self.supervisor.abort_choice(request.request_id, choice)
                case Abort(request_id, None):
                    attached.open_ids.discard(request_id)
                    self.supervisor.abort(request_id)
                case Abort(request_id, int(choice)):
                    self.supervisor.abort_choice(request_id, choice)
                case Announce(adapter):
                    self._adapters.announce(front, adapter, attached.tell)

    async def drain(self, grace_period_s: float) -> None:
        """Have the fronts move what is here; return when nothing is left, or after the time."""
        self._draining = True
        for attached in self._fronts.values():
            attached.tell(Draining())
        end_s = time.monotonic() + grace_period_s
        while self.num_requests and time.monotonic() < end_s:
            await asyncio.sleep(DRAIN_POLL_S)

    async def close(self) -> None:
        """Stop the engine at once."""
        if self._beating is not None:
            self._beating.cancel()
        await self.supervisor.close()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._tell_all(Beat())

    # --- what the supervisor tells ----------------------------------------------------------

    def _tell_updates(self, updates: Sequence[SequenceUpdate]) -> None:
        now_s = time.monotonic()

        def news(mine: Sequence[SequenceUpdate]) -> News:
            supervisor = self.supervisor
            return News(
                tuple(mine),
                now_s,
                self.num_requests,
                supervisor.blocks_in_use,
                supervisor.adapters,
            )

        for front, mine in _by_front(updates, lambda update: update.request_id).items():
            if (attached := self._fronts.get(front)) is not None:
                attached.tell(news(mine))

    def _tell_begun(self, request_ids: Sequence[str]) -> None:
        for front, mine in _by_front(request_ids, str).items():
            if (attached := self._fronts.get(front)) is not None:
                attached.tell(Begun(tuple(mine)))

    def _tell_ready(self, ready: Ready) -> None:
        config = ready.config
        numbers = f"{config.dtype}, KV {config.kv_cache_dtype}, {ready.kernels}"
        self._joined = Joined(self.name, config, numbers, self._digest, ready.plan_lines)
        self._tell_all(self._joined)

    def _tell_names(self, found: bytes, gone: bytes) -> None:
        for name in split(gone):
            self._found.pop(name, None)
        self._found.update(dict.fromkeys(split(found)))
        self._tell_all(Blocks(found, gone))

    def _tell_lost(self, reason: str) -> None:
        self._found.clear()
        self._leave_fronts(reason)

    def _tell_silence(self, is_silent: bool) -> None:
        if is_silent:
            limit_s = self._silence_timeout_s
            for attached in self._fronts.values():
                for request_id in attached.open_ids:
                    self.supervisor.abort(request_id)
            self._leave_fronts(f"its engine gave no sign of life for {limit_s:g} s")
        elif self.supervisor.ready is not None:
            self._tell_ready(self.supervisor.ready)
            self._tell_all(Blocks(b"".join(self._found)))

    def _leave_fronts(self, reason: str) -> None:
        if self._joined is None:
            return
        self._joined = None
        for attached in self._fronts.values():
            attached.open_ids.clear()
        self._tell_all(Lost(reason))

    def _fail(self, error: EngineError) -> None:
        self.failure = error
        self._tell_lost(str(error))

    def _tell_all(self, message: FromReplica) -> None:
        for attached in self._fronts.values():
            attached.tell(message)


def _read(path: Path) -> tuple[Checkpoint, str]:
    """A model's files, and its digest."""
    checkpoint = open_checkpoint(path)
    return checkpoint, model_digest(checkpoint)


def _by_front(items: Iterable[_T], wire_id: Callable[[_T], str]) -> dict[str, list[_T]]:
    grouped: dict[str, list[_T]] = {}
    for item in items:
        grouped.setdefault(front_of(wire_id(item)), []).append(item)
    return grouped
