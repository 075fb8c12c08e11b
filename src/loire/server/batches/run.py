"""One batch, from where it stands to its end.

    validating -> in_progress -> finalizing -> completed
    validating -> failed              in_progress -> expired
    validating, in_progress -> cancelling -> cancelled

Each state is on the disk before anything is done in it, and doing it again gives the same files:
a server that was killed goes on where it was.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import replace
from typing import IO, Any, Literal, Protocol, TypeVar

import msgspec

from loire.server.batches.file_store import FileStore
from loire.server.batches.input import BatchInput, read_input
from loire.server.batches.record import BatchError, BatchRecord, BatchStore
from loire.server.batches.results import BatchResults, Failure, LineAnswer, OutputLine
from loire.server.storage.disk import FULL, storage_error

log = logging.getLogger("loire.server")

T = TypeVar("T")
Outcome = Literal["completed", "expired", "cancelled"]

DISK_RETRY_S = 15.0
"""After a disk was full, until it is tried again."""

_NOT_RUN = {
    "expired": Failure("batch_expired", "the batch expired before this request was run"),
    "cancelled": Failure("batch_cancelled", "the batch was cancelled before this request was run"),
}


class Lines(Protocol):
    """Runs single requests of all batches, as many at a time as suit the engine."""

    large_files: asyncio.Lock
    """Whoever reads or writes a whole file has it: hundreds of megabytes may take a while, on a
    thread that others wait for."""

    def place(self, tenant: str) -> AbstractAsyncContextManager[None]:
        """A place among the batches that are under way, tenants in turn: each holds a list of its
        lines."""
        ...

    async def begin(self, tenant: str) -> None:
        """Wait for a place in the engine, tenants in turn."""
        ...

    async def run(self, record: BatchRecord, body: bytes) -> LineAnswer:
        """The answer to one request, whatever it is; the place is free again."""
        ...

    def leave(self) -> None:
        """Give the place back."""
        ...


class BatchRun:
    """Takes a batch to its end; run() once. Cancelling run() stops it where it is."""

    def __init__(
        self, record: BatchRecord, batches: BatchStore, files: FileStore, lines: Lines
    ) -> None:
        self.record = record
        self.disk_trouble: str | None = None
        """Why nothing goes on at the moment."""
        self._batches = batches
        self._files = files
        self._lines = lines
        self._input = BatchInput(files.path(record.input_file_id))
        self._cancelled = asyncio.Event()
        self._saving = asyncio.Lock()
        if record.status == "cancelling":
            self._cancelled.set()

    async def cancel(self) -> None:
        """Stop as soon as possible. To be called while it is validating or in progress."""
        self._cancelled.set()
        await self._save(status="cancelling", cancelling_at=_now())

    async def run(self) -> None:
        """Go on until the batch has ended."""
        try:
            await self._to_the_end()
        except Exception as error:
            log.exception("batch %s failed", self.record.id)
            if isinstance(error, OSError):
                error = storage_error(error, "go on with the batch")
            failure = BatchError(code="batch_failed", message=f"{type(error).__name__}: {error}")
            await self._save(status="failed", failed_at=_now(), errors=(failure,))

    async def _to_the_end(self) -> None:
        has_begun = self.record.status != "validating"
        async with AsyncExitStack() as stack:
            entering = stack.enter_async_context(self._lines.place(self.record.tenant))
            if has_begun:  # it may have answers, which are kept whatever becomes of it
                await entering
            elif not await self._unless_over(entering):
                if self._cancelled.is_set():
                    await self._fail()
                else:
                    await self._save(status="expired", expired_at=_now())
                return
            await self._from_its_place()

    async def _unless_over(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do it, unless the batch is cancelled or expires before; whether it was done."""
        working = asyncio.create_task(work)
        cancelled = asyncio.create_task(self._cancelled.wait())
        try:
            await asyncio.wait(
                {working, cancelled},
                timeout=max(self.record.expires_at - time.time(), 0),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            cancelled.cancel()
            working.cancel()
            [_, outcome] = await asyncio.gather(cancelled, working, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome is None

    async def _from_its_place(self) -> None:
        path = self._input.path
        if not path.exists():
            await self._fail(BatchError(code="input_gone", message="the input file is gone"))
            return
        async with self._lines.large_files:
            self._input, errors = await asyncio.to_thread(read_input, path, self.record.endpoint)
        if errors:
            await self._fail(*errors)
            return
        results = await self._on_disk(lambda: BatchResults(self._batches.database, self.record.id))
        await self._work(results)
        outcome = await self._outcome()
        await self._finish(results, outcome)

    async def _work(self, results: BatchResults) -> None:
        """Run what is to be run, until it is done, cancelled or expired."""
        if self.record.status == "validating":
            await self._save(
                status="in_progress", in_progress_at=_now(), num_total=len(self._input)
            )
        self._note(results)
        if self.record.status != "in_progress":
            return
        try:
            await self._unless_over(self._run_lines(results))
        finally:
            await results.settle()
        self._note(results)

    async def _outcome(self) -> Outcome:
        if self._cancelled.is_set():
            return "cancelled"
        record = self.record
        if record.num_completed + record.num_failed < len(self._input):
            return "expired"
        await self._save(status="finalizing", finalizing_at=record.finalizing_at or _now())
        return "completed"

    async def _run_lines(self, results: BatchResults) -> None:
        tasks: set[asyncio.Task[None]] = set()
        failures: list[BaseException] = []

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self._lines.leave()
            if not task.cancelled() and (error := task.exception()) is not None:
                failures.append(error)

        try:
            for index in range(len(self._input)):
                if index in results:
                    continue
                await self._lines.begin(self.record.tenant)
                task = asyncio.create_task(self._run_line(index, results))
                tasks.add(task)
                task.add_done_callback(ended)
                if failures:
                    break
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if failures:
            raise failures[0]

    async def _run_line(self, index: int, results: BatchResults) -> None:
        line = await asyncio.to_thread(self._input.read, index)
        answer = await self._lines.run(self.record, bytes(line.body))
        output = OutputLine(f"batch_{answer.request_id}", line.custom_id, answer, None)
        while True:
            try:
                await results.append(index, output)
                break
            except OSError as error:
                await self._wait_for_disk(error)
        self.disk_trouble = None
        self._note(results)

    async def _finish(self, results: BatchResults, outcome: Outcome) -> None:
        stem = self.record.id.removeprefix("batch_")
        output_id, error_id = f"file-{stem}-output", f"file-{stem}-errors"

        def write_errors(out: IO[bytes]) -> None:
            results.write(out, ok=False)
            for index in range(len(self._input)):
                if index not in results:
                    custom_id = self._input.read(index).custom_id
                    line = OutputLine(f"{stem}-{index}", custom_id, None, _NOT_RUN[outcome])
                    out.write(msgspec.json.encode(line) + b"\n")

        has_output = results.num_completed > 0
        has_errors = results.num_completed < len(self._input)
        if has_output:
            await self._write_file(output_id, "output", lambda out: results.write(out, ok=True))
        if has_errors:
            await self._write_file(error_id, "errors", write_errors)
        await self._save(
            status=outcome,
            num_total=len(self._input),
            output_file_id=output_id if has_output else None,
            error_file_id=error_id if has_errors else None,
            **{f"{outcome}_at": _now()},
        )
        await asyncio.to_thread(results.delete)
        log.info(
            "batch %s %s: %d completed, %d failed, %d in all",
            self.record.id,
            outcome,
            results.num_completed,
            results.num_failed,
            len(self._input),
        )

    async def _write_file(
        self, file_id: str, kind: str, write: Callable[[IO[bytes]], object]
    ) -> None:
        record = self.record
        name = f"{record.id}_{kind}.jsonl"
        await self._on_disk(
            lambda: self._files.put(file_id, record.tenant, name, "batch_output", write),
            self._lines.large_files,
        )

    async def _fail(self, *errors: BatchError) -> None:
        """It cannot be run; or it was cancelled before anybody could tell."""
        if self._cancelled.is_set():
            await self._save(status="cancelled", cancelled_at=_now())
        else:
            await self._save(status="failed", failed_at=_now(), errors=errors)

    def _note(self, results: BatchResults) -> None:
        self.record = replace(
            self.record, num_completed=results.num_completed, num_failed=results.num_failed
        )
        self._batches.note(self.record)

    async def _save(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        async with self._saving:
            await self._on_disk(lambda: self._batches.save(self.record))

    async def _on_disk(self, work: Callable[[], T], turn: asyncio.Lock | None = None) -> T:
        """The result of work that writes; while the disk is full, it is tried again. turn: had for
        each try."""
        while True:
            try:
                async with turn or nullcontext():
                    result = await asyncio.to_thread(work)
            except OSError as error:
                await self._wait_for_disk(error)
            else:
                self.disk_trouble = None
                return result

    async def _wait_for_disk(self, error: OSError) -> None:
        if error.errno not in FULL:
            raise error
        self.disk_trouble = str(storage_error(error, "go on with the batch"))
        log.error("batch %s waits: %s", self.record.id, self.disk_trouble)
        await asyncio.sleep(DISK_RETRY_S)


def _now() -> int:
    return int(time.time())
