"""The other ranks of a model that several processes compute, as rank 0 has them."""

import logging
import os
import socket
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from loire.base import errors
from loire.base.config import EngineOptions
from loire.base.errors import EngineError, RankLostError
from loire.base.machine import cores_of_ranks, usable_cores
from loire.base.python_process import python_command, python_environment
from loire.engine.rank_wire import (
    Adapt,
    CacheMade,
    ComputeLogits,
    Frames,
    Loaded,
    LoadShare,
    MakeCache,
    compute_message,
    read_from_rank,
)
from loire.engine.wire import Failed, WireError, frame
from loire.execution.forward import StepInputs
from loire.kernels.interface import Ranks

log = logging.getLogger("loire.engine")

SEND_BUFFER_BYTES = 2**20
CLOSE_S = 5.0

T = TypeVar("T", Loaded, CacheMade)


@dataclass(frozen=True, slots=True)
class _Process:
    """Of one rank."""

    rank: int
    process: "subprocess.Popen[bytes]"
    connection: socket.socket
    frames: Frames


class _Bond:
    """What ties the ranks together: when one is gone, all are."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes: list[_Process] = []
        self.ranks: Ranks | None = None
        """Of this process, once it has met the others."""
        self.lost = ""
        """Why they are, if they are."""
        self._lock = threading.Lock()

    def lose(self, why: str) -> None:
        """End what waits in a step, here and elsewhere, and the other processes with it."""
        with self._lock:
            self.lost = self.lost or why
        if self.ranks is not None:
            self.ranks.lose()
        for one in self.processes:
            with suppress(OSError):
                one.connection.shutdown(socket.SHUT_RDWR)

    def watch(self, one: _Process) -> None:
        """On a thread of its own: wait for a process's end."""
        status = one.process.wait()
        if self.lost:
            return
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        why = f"rank {one.rank} of {self.size} (process {one.process.pid}) is gone: {how}"
        log.error("%s", why)
        self.lose(why)

    def end(self) -> None:
        """Hang up, which ends the processes; kill those that it does not."""
        self.lose("the engine was closed")
        for one in self.processes:
            try:
                one.process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            one.connection.close()


class RankProcesses:
    """See loire.execution.build.JoiningRanks. Ends them when it is closed, or deleted."""

    def __init__(self, path: str, options: EngineOptions) -> None:
        """Start them. path: of the checkpoint. options: with num_threads, those of each."""
        size = options.tensor_parallel_size
        if size > (cores := usable_cores()):
            log.warning(
                "%d processes compute together on %d CPUs: each sum waits for all of them in turn, "
                "which takes many times as long",
                size,
                cores,
            )
        self._path = path
        self._options = options
        self._bond = _Bond(size)
        self._memory = _shared_file()
        self.memory = self._memory
        """A file for memory that all ranks share."""
        self._finalizer = weakref.finalize(self, _end, self._bond, self._memory)
        for rank in range(1, size):
            self._bond.processes.append(self._start(rank))
        for one in self._bond.processes:
            threading.Thread(
                target=self._bond.watch, args=(one,), name="loire-rank", daemon=True
            ).start()

    def load(self, window: int, file: str) -> None:
        """Begin to read their shares."""
        self._tell(LoadShare(self._path, self._options, window, file))

    def joined(self, ranks: Ranks) -> None:
        """This rank has met them."""
        self._bond.ranks = ranks
        if self._bond.lost:
            ranks.lose()

    def loaded(self) -> int:
        """Wait until they have; bytes of the weights that they hold together."""
        return sum(answer.weight_bytes for answer in self._answers(Loaded))

    def make_caches(self, num_blocks: int) -> None:
        """Make the KV pools, and wait until they are ready to compute."""
        self._tell(MakeCache(num_blocks))
        self._answers(CacheMade)

    def compute(self, inputs: StepInputs) -> None:
        """Begin a step."""
        self._tell(compute_message(inputs))

    def logits(self, tokens: Sequence[int]) -> None:
        """Begin the logits behind tokens of that step."""
        self._tell(ComputeLogits(tuple(tokens)))

    def adapt(self, number: int, path: str | None) -> None:
        """Which adapter a number stands for from now on."""
        self._tell(Adapt(number, path))

    def lose(self, why: str) -> str:
        """End them; why they are lost, or were before."""
        self._bond.lose(why)
        return self._bond.lost

    def close(self) -> None:
        """End them, and wait until they have. Closing twice is fine."""
        self._finalizer()

    def _start(self, rank: int) -> _Process:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            numbers = theirs.fileno(), self._memory, rank, self._bond.size
            process = subprocess.Popen(
                python_command("loire.engine.rank_worker", *map(str, numbers)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=python_environment(),
                pass_fds=numbers[:2],
            )
        return _Process(rank, process, ours, Frames(ours))

    def _tell(self, message: msgspec.Struct) -> None:
        data = frame(message)
        for one in self._bond.processes:
            if self._bond.lost:
                raise RankLostError(self._bond.lost)
            try:
                one.connection.sendall(data)
            except OSError as error:
                why = f"rank {one.rank} of {self._bond.size} hears nothing: {error}"
                raise RankLostError(self.lose(why)) from error

    def _answers(self, kind: type[T]) -> list[T]:
        """The next message of each."""
        answers: list[T] = []
        for one in self._bond.processes:
            body = one.frames.next()
            if body is None:
                why = f"rank {one.rank} of {self._bond.size} ended while it was loading"
                raise RankLostError(self.lose(why))
            answer = read_from_rank(body)
            if isinstance(answer, Failed):
                raise getattr(errors, answer.kind, EngineError)(answer.message)
            if not isinstance(answer, kind):
                raise WireError(f"rank {one.rank} sent {type(answer).__name__}")
            answers.append(answer)
        return answers


def _end(bond: _Bond, memory: int) -> None:
    bond.end()
    os.close(memory)


def _shared_file() -> int:
    """A file without a name, of no bytes yet, in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("loire-ranks")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def with_threads(options: EngineOptions) -> EngineOptions:
    """The options of each of several ranks on this machine: they divide its cores."""
    size = options.tensor_parallel_size
    if size == 1 or options.num_threads is not None:
        return options
    return replace(options, num_threads=max(1, usable_cores() // size))


def keep_to_cores(size: int) -> None:
    """Keep this process, which is rank 0 of so many and nothing else, to its own CPUs."""
    cores = cores_of_ranks(size)
    if size > 1 and cores is not None:
        os.sched_setaffinity(0, cores[0])
