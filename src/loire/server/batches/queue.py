"""The batches of a server: kept on the disk, run below everything that somebody waits for."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress

import msgspec
from starlette.types import ASGIApp

from loire.base.config import EngineConfig
from loire.server.access.caller import Caller
from loire.server.access.keys import KeyRing
from loire.server.batches.data_folder import DataFolder
from loire.server.batches.in_process import BatchRoutes
from loire.server.batches.record import BatchRecord, BatchStore
from loire.server.batches.results import LineAnswer
from loire.server.batches.run import BatchRun
from loire.server.serving.served import ServedModel
from loire.server.storage.disk import storing
from loire.server.web.errors import ApiError

log = logging.getLogger("loire.server")

WINDOW_S = 24 * 3600
"""A batch expires so many seconds after it was made."""

SHARE_OF_SLOTS = 0.75
"""Of the engine's max_num_seqs, that batches fill; the rest is free for those who wait."""

MAX_OPEN_OF_TENANT = 32
MAX_OPEN = 128
"""Batches that are under way. Each holds where 50,000 lines are, and which have an answer: a few
megabytes, and a thousand batches can be made of one file."""
OPEN_TRIES_S = 60
"""At start, the server before this one may still be about to end."""

_POLL_S = 0.5
_FEED_S = 0.02
_RETRY_S = 1.0
_AGAIN = (429, 503)
"""The engine is full, loading, or on its way back: the request is run again."""
_MAX_TIMEOUTS = 3


class EngineLines:
    """Runs requests of batches, as many at a time as keep the engine full. See batch_run.Lines."""

    def __init__(self, served: ServedModel, app: ASGIApp, ring: KeyRing) -> None:
        self._served = served
        self._routes = BatchRoutes(app, ring)
        self._num_running = 0
        self._turn = asyncio.Lock()
        self._turn_of: dict[str, asyncio.Lock] = {}
        self._left = asyncio.Event()
        self._open = asyncio.Semaphore(MAX_OPEN)
        self._open_of: dict[str, asyncio.Semaphore] = {}
        self.large_files = asyncio.Lock()

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """A place among those that are under way; tenants come in turn."""
        own = self._open_of.setdefault(tenant, asyncio.Semaphore(MAX_OPEN_OF_TENANT))
        async with own, self._open:
            yield

    async def begin(self, tenant: str) -> None:
        """Wait for a place; tenants get places in turn, and so do batches of one."""
        own = self._turn_of.setdefault(tenant, asyncio.Lock())
        async with own, self._turn:  # locks are fair: first come, first served
            while (pause_s := self._pause_s()) != 0:
                self._left.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._left.wait(), pause_s)
            self._num_running += 1

    def leave(self) -> None:
        """Give a place back."""
        self._num_running -= 1
        self._left.set()

    async def run(self, record: BatchRecord, body: bytes) -> LineAnswer:
        """The answer to one request; while the engine cannot take it, it is tried again."""
        num_timeouts = 0
        while True:
            request_id = f"req_{uuid.uuid4().hex}"
            status, answer = await self._routes.post(
                record.endpoint, body, tenant=record.tenant, request_id=request_id
            )
            num_timeouts += status == 504
            if status not in _AGAIN and not 0 < num_timeouts < _MAX_TIMEOUTS:
                return LineAnswer(status, request_id, msgspec.Raw(answer))
            await asyncio.sleep(_RETRY_S)

    def _pause_s(self) -> float | None:
        """0 if there is a place; else when to look again, None for when one is given back."""
        if self._served.state != "ready":
            return _POLL_S
        engine = self._served.engine
        num_places = _num_places(engine.config)
        if self._num_running >= num_places:
            return None
        # Those that wait in the engine gain nothing by it, and fill its queue.
        queue = self._served.admission.limits.max_queued_requests
        return (
            _FEED_S if engine.link.num_waiting_sequences > min(num_places // 2, queue // 4) else 0
        )


def _num_places(config: EngineConfig) -> int:
    """Lines that run at a time: with more, each would only have to wait for its turn longer."""
    return max(min(config.background_tokens_alone, int(config.max_num_seqs * SHARE_OF_SLOTS)), 1)


class BatchQueue:
    """Makes, runs and cancels batches; takes up again what another server left unfinished.

    app: answers their requests, as in_process.BatchRoutes has it; ring: see there.
    """

    def __init__(self, data: DataFolder, served: ServedModel, app: ASGIApp, ring: KeyRing) -> None:
        self._data = data
        self._lines = EngineLines(served, app, ring)
        self._runs: dict[str, BatchRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resumed = False

    def start(self) -> None:
        """Take up unfinished batches, if any were ever kept here."""
        if self._data.has_batches:
            self._spawn(self._resume())

    async def close(self) -> None:
        """Stop where everything is; the next server goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def create(
        self, caller: Caller, endpoint: str, input_file_id: str, metadata: Mapping[str, str]
    ) -> BatchRecord:
        """A new batch, which waits for nobody. Raises ApiError."""
        store = await self.store()
        tenant, most = caller.tenant, caller.meter.limits.storage_bytes
        # It will write as well.
        await asyncio.to_thread(self._data.files.check_room, tenant, most)
        async with self._data.deciding:
            file = self._data.files.get(input_file_id, tenant)
            if file.purpose != "batch":
                raise ApiError(
                    400,
                    f"the file {input_file_id!r} is for purpose {file.purpose!r}, not 'batch'",
                    param="input_file_id",
                )
            now = int(time.time())
            record = BatchRecord(
                id=f"batch_{uuid.uuid4().hex}",
                tenant=tenant,
                endpoint=endpoint,
                input_file_id=input_file_id,
                created_at=now,
                expires_at=now + WINDOW_S,
                metadata=metadata,
            )
            with storing("keep the batch"):
                await asyncio.to_thread(store.make_room, tenant)
                await asyncio.to_thread(store.save, record)
        self._run(record, store)
        return record

    async def cancel(self, batch_id: str, tenant: str) -> BatchRecord:
        """Stop a batch; what it has done is kept. Raises ApiError: 404, or 409 if it is over."""
        store = await self.store()
        record = store.get(batch_id, tenant)
        run = self._runs.get(batch_id)
        if run is not None:
            record = run.record  # which may not be on the disk yet
        if record.status == "cancelling":
            return record
        if run is None or record.status not in ("validating", "in_progress"):
            raise ApiError(
                409,
                f"the batch cannot be cancelled any more: it is {record.status}",
                code="batch_not_cancellable",
            )
        await run.cancel()
        return store.get(batch_id, tenant)

    async def store(self) -> BatchStore:
        """The batches; those that are unfinished are running. Raises ApiError."""
        store = await asyncio.to_thread(lambda: self._data.batches)
        if not self._resumed:
            self._resumed = True
            for record in store.unfinished:
                self._run(record, store)
        return store

    def trouble(self, batch_id: str) -> str | None:
        """Why a batch does not go on at the moment, if the disk is the reason."""
        run = self._runs.get(batch_id)
        return None if run is None else run.disk_trouble

    async def _resume(self) -> None:
        end = time.monotonic() + OPEN_TRIES_S
        while True:
            try:
                await self.store()
            except ApiError as error:
                if time.monotonic() > end:
                    log.warning("unfinished batches are not taken up: %s", error)
                    return
                await asyncio.sleep(1)
            else:
                return

    def _run(self, record: BatchRecord, store: BatchStore) -> None:
        log.info("batch %s for %s: %s", record.id, record.endpoint, record.status)
        run = BatchRun(record, store, self._data.files, self._lines)
        self._runs[record.id] = run
        self._spawn(run.run()).add_done_callback(lambda _: self._runs.pop(record.id, None))

    def _spawn(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
