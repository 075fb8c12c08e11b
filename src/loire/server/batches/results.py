"""Results of a batch while it runs: appended to a file, on the disk before they count.

A crash can tear the last line of the file, which is then cut off: its request is run again. What
is complete is never run again, so that every request has one result in the end.
"""

import asyncio
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

log = logging.getLogger("loire.server")


class Answer(msgspec.Struct, frozen=True):
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
    custom_id: str
    response: Answer | None
    error: Failure | None


class _Entry(msgspec.Struct, frozen=True):
    """A line of the file of results. index: of the request in the input, from 0."""

    index: int
    ok: bool
    output: msgspec.Raw


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    num_bytes: int
    ok: bool


class ResultLog:
    """The results of one batch. Opening reads what is there; it blocks. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_completed = 0
        self.num_failed = 0
        self._places: dict[int, _Place] = {}
        self._size = 0
        self._waiting: list[tuple[_Entry, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        path.touch()
        self._replay()

    def __contains__(self, index: int) -> bool:
        return index in self._places

    async def append(self, index: int, output: OutputLine) -> None:
        """Add a result; when this returns, it is on the disk. Raises OSError.

        Those that come while the disk is busy are written together.
        """
        ok = output.response is not None and output.response.status_code < 400
        entry = _Entry(index, ok, msgspec.Raw(msgspec.json.encode(output)))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_waiting())
        await written

    async def settle(self) -> None:
        """Wait until nothing is being written: those who added it may have given up waiting."""
        if self._writing is not None:
            await asyncio.wait({self._writing})

    def write(self, out: IO[bytes], *, ok: bool) -> None:
        """Copy the results of requests that succeeded (or failed), in the order of the input."""
        with self.path.open("rb") as file:
            for _, place in sorted(self._places.items()):
                if place.ok == ok:
                    file.seek(place.offset)
                    entry = msgspec.json.decode(file.read(place.num_bytes), type=_Entry)
                    out.write(bytes(entry.output) + b"\n")

    async def _write_waiting(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting, []
            lines = [msgspec.json.encode(entry) + b"\n" for entry, _ in together]
            try:
                await asyncio.to_thread(self._write, b"".join(lines))
            except OSError as error:
                for _, written in together:
                    if not written.done():
                        written.set_exception(error)
                continue
            for (entry, written), line in zip(together, lines, strict=True):
                self._note(entry, len(line))
                if not written.done():
                    written.set_result(None)

    def _write(self, lines: bytes) -> None:
        with self.path.open("r+b", buffering=0) as file:
            # Cuts off what a write that failed may have left.
            file.truncate(self._size)
            file.seek(self._size)
            left = memoryview(lines)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())

    def _replay(self) -> None:
        with self.path.open("rb") as file:
            for line, entry in _entries(file):
                if entry is None:
                    log.warning("%s is torn at byte %d: cut off", self.path, self._size)
                    break
                self._note(entry, len(line))

    def _note(self, entry: _Entry, num_bytes: int) -> None:
        assert entry.index not in self._places, f"request {entry.index} has two results"
        self._places[entry.index] = _Place(self._size, num_bytes, entry.ok)
        self._size += num_bytes
        self.num_completed += entry.ok
        self.num_failed += not entry.ok


def _entries(file: IO[bytes]) -> Iterator[tuple[bytes, _Entry | None]]:
    for line in file:
        try:
            yield line, msgspec.json.decode(line, type=_Entry) if line.endswith(b"\n") else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            yield line, None
