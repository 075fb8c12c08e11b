"""A rank's process: loads its share of a model, then computes what rank 0 tells it.

    loire.engine.rank_worker FD MEMORY RANK SIZE

FD: the number of a connected Unix socket. MEMORY: that of a file for memory that all ranks share.
It ends when rank 0 closes the socket, or dies; SIGINT and SIGTERM are for rank 0 to hear.
"""

import logging
import os
import signal
import socket
import sys

from loire.base.errors import LoireError
from loire.base.machine import cores_of_ranks
from loire.engine.hang_up import end_with

EXIT_FAILED = 1

log = logging.getLogger("loire.engine")


def run(connection: socket.socket, memory: int, rank: int, size: int) -> None:
    """Load and compute until rank 0 hangs up."""
    from loire.engine.rank_wire import (
        Adapt,
        CacheMade,
        Compute,
        ComputeLogits,
        Frames,
        Loaded,
        LoadShare,
        MakeCache,
        read_to_rank,
        step_inputs,
    )
    from loire.engine.wire import Failed, WireError, frame
    from loire.execution.build import FollowingRank  # before the first message: it takes longest
    from loire.kernels.interface import Meeting

    frames = Frames(connection)
    follower: FollowingRank | None = None
    while (body := frames.next()) is not None:
        message = read_to_rank(body)
        if isinstance(message, LoadShare):
            from pathlib import Path

            from loire.checkpoint.open import open_checkpoint

            meeting = Meeting(rank, size, memory, message.file)
            try:
                checkpoint = open_checkpoint(Path(message.path))
                follower = FollowingRank(checkpoint, message.options, meeting, message.window)
            except LoireError as error:
                connection.sendall(frame(Failed(type(error).__name__, str(error))))
                return
            connection.sendall(frame(Loaded(follower.weight_bytes)))
            continue
        if follower is None:
            raise WireError(f"{type(message).__name__} comes before the model")
        match message:
            case MakeCache(num_blocks):
                follower.make_cache(num_blocks)
                connection.sendall(frame(CacheMade()))
            case Compute():
                follower.compute(step_inputs(message, follower.block_sizes))
            case ComputeLogits(tokens):
                follower.logits(tokens)
            case Adapt(number, path):
                follower.adapt(number, path)


def main() -> None:
    """Run the process of these arguments."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.dup2(2, 1)  # what is printed belongs to the log
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s", level=logging.INFO)
    fd, memory, rank, size = map(int, sys.argv[1:])
    cores = cores_of_ranks(size)
    if cores is not None:
        os.sched_setaffinity(0, cores[rank])  # before anything starts threads
    connection = socket.socket(fileno=fd)
    end_with(connection)
    try:
        run(connection, memory, rank, size)
    except Exception:
        log.exception("rank %d of %d cannot go on", rank, size)
        sys.stderr.flush()
        os._exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
