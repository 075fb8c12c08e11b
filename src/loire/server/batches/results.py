"""Results of a batch while it runs: each is on the disk before it counts.

What has a result is never run again, so that every request has one in the end.
"""

import asyncio
from collections.abc import Iterator
from typing import IO

import msgspec

from loire.server.storage.database import Database
from loire.server.web.sse import on_one_line

_PAGE = 256
"""Results that are read at a time, so that others get their turn at the database."""


class LineAnswer(msgspec.Struct, frozen=True):
    """What a request was answered with."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class Failure(msgspec.Struct, frozen=True):
    """Why a request was not run."""

    code: str
    message: str


class OutputLine(msgspec.Struct, frozen=True):
    """A line of the files that the user gets."""

    id: str
    custom_id: str | int
    response: LineAnswer | None
    error: Failure | None


class BatchResults:
    """The results of one batch, by the number of the request in the input, from 0.

    Opening reads which there are; it blocks. Raises OSError.
    """

    def __init__(self, database: Database, batch_id: str) -> None:
        self._database = database
        self._batch_id = batch_id
        self._writing: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        database.write(
            "CREATE TABLE IF NOT EXISTS results (batch_id TEXT, number INTEGER, ok INTEGER, "
            "line BLOB, PRIMARY KEY (batch_id, number)) WITHOUT ROWID"
        )
        found = database.read("SELECT number, ok FROM results WHERE batch_id = ?", batch_id)
        self._numbers = {number for number, _ in found}
        self.num_completed = sum(ok for _, ok in found)
        self.num_failed = len(found) - self.num_completed

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    async def append(self, number: int, output: OutputLine) -> None:
        """Add a result; when this returns, it is on the disk. Raises OSError."""
        writing = asyncio.create_task(self._append(number, output))
        self._writing.add(writing)
        writing.add_done_callback(self._written)
        # Whoever waits may be cancelled: what is being written counts all the same.
        await asyncio.shield(writing)

    async def settle(self) -> None:
        """Wait until nothing is being written: those who added it may have given up waiting."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    def write(self, out: IO[bytes], *, ok: bool) -> None:
        """Copy the results of requests that succeeded (or failed), in the order of the input."""
        for line in self._lines(ok):
            # Readers of lines split them at more than this: nothing of it is left inside one.
            out.write(on_one_line(line.decode()).encode() + b"\n")

    def delete(self) -> None:
        """They have been copied. Blocks."""
        self._database.write("DELETE FROM results WHERE batch_id = ?", self._batch_id)

    def _written(self, writing: "asyncio.Task[None]") -> None:
        self._writing.discard(writing)
        if not writing.cancelled():
            writing.exception()  # is seen, even if nobody waits for it any more

    async def _append(self, number: int, output: OutputLine) -> None:
        ok = output.response is not None and output.response.status_code < 400
        line = msgspec.json.encode(output)
        async with self._turn:  # so that no batch holds more than one thread
            await asyncio.to_thread(self._insert, number, ok, line)
        self._numbers.add(number)
        self.num_completed += ok
        self.num_failed += not ok

    def _insert(self, number: int, ok: bool, line: bytes) -> None:
        self._database.write(
            "INSERT INTO results VALUES (?, ?, ?, ?)", self._batch_id, number, ok, line
        )

    def _lines(self, ok: bool) -> Iterator[bytes]:
        last = -1
        while page := self._database.read(
            "SELECT number, line FROM results WHERE batch_id = ? AND ok = ? AND number > ? "
            "ORDER BY number LIMIT ?",
            self._batch_id,
            ok,
            last,
            _PAGE,
        ):
            yield from (line for _, line in page)
            last = page[-1][0]
