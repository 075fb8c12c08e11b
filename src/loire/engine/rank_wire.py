"""What rank 0 of a model that several processes compute says to the others, and they to it: frames
as in loire.engine.wire, once a step and small, never in a layer."""

import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from loire.base.config import EngineOptions
from loire.engine.wire import Failed, FrameReader, WireError, decoded
from loire.execution.forward import StepInputs
from loire.execution.inputs import batch_of

RECEIVE_BYTES = 2**16

Pairs: TypeAlias = tuple[tuple[int, int], ...]


class LoadShare(msgspec.Struct, frozen=True, tag=True):
    """To a rank, first of all: load a share of this model."""

    path: str
    options: EngineOptions
    window: int
    file: str
    """Where ranks meet that share no memory."""


class MakeCache(msgspec.Struct, frozen=True, tag=True):
    """To a rank: make the KV pool."""

    num_blocks: int


class Compute(msgspec.Struct, frozen=True, tag=True):
    """To a rank: a step. Arrays as they lie in memory."""

    token_ids: bytes
    """int64 [T]."""
    starts: tuple[int, ...]
    lens: tuple[int, ...]
    tables: tuple[bytes, ...]
    """int32 [R, M] of each cache group."""
    wanted: tuple[int, ...] | None
    copies: Pairs
    zeroed: tuple[int, ...]
    snapshots: Pairs
    adapters: bytes | None
    """int32 [T]; None: no token has one."""


class Adapt(msgspec.Struct, frozen=True, tag=True):
    """To a rank: which adapter a number stands for from now on; None: none."""

    number: int
    path: str | None


class ComputeLogits(msgspec.Struct, frozen=True, tag=True):
    """To a rank: the logits behind some tokens of that step."""

    tokens: tuple[int, ...]


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """From a rank: it has its share of the weights."""

    weight_bytes: int


class CacheMade(msgspec.Struct, frozen=True, tag=True):
    """From a rank: steps may come."""


ToRank: TypeAlias = LoadShare | MakeCache | Compute | ComputeLogits | Adapt
FromRank: TypeAlias = Loaded | CacheMade | Failed

_to_rank: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)
_from_rank: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)


def read_to_rank(body: bytes) -> ToRank:
    """A message to a rank. Raises WireError."""
    return decoded(_to_rank, body)


def read_from_rank(body: bytes) -> FromRank:
    """A message from a rank. Raises WireError."""
    return decoded(_from_rank, body)


def compute_message(inputs: StepInputs) -> Compute:
    """A step as a message; none of its tokens is pending."""
    host = inputs.batch
    assert host.pending is None, "rank 0 knows the tokens"
    pairs = zip(host.context_lens, host.query_lens, strict=True)
    return Compute(
        token_ids=host.token_ids.tobytes(),
        starts=tuple(context - query for context, query in pairs),
        lens=host.query_lens,
        tables=tuple(table.tobytes() for table in inputs.tables),
        wanted=None if inputs.wanted is None else tuple(inputs.wanted),
        copies=tuple(inputs.copies),
        zeroed=tuple(inputs.zeroed),
        snapshots=tuple(inputs.snapshots),
        adapters=None if host.adapters is None else host.adapters.tobytes(),
    )


def step_inputs(message: Compute, block_sizes: Sequence[int]) -> StepInputs:
    """What compute_message() was given. Raises WireError if its parts do not fit together."""
    num_rows = len(message.lens)
    try:
        tokens: NDArray[np.int64] = np.frombuffer(bytearray(message.token_ids), dtype=np.int64)
        tables = [
            np.frombuffer(bytearray(data), dtype=np.int32).reshape(num_rows, -1)
            for data in message.tables
        ]
        adapters: NDArray[np.int32] | None = None
        if message.adapters is not None:
            adapters = np.frombuffer(bytearray(message.adapters), dtype=np.int32)
    except ValueError as error:
        raise WireError(f"a step's arrays are not whole: {error}") from error
    fits = len(message.starts) == num_rows and sum(message.lens) == len(tokens)
    fits = fits and (adapters is None or len(adapters) == len(tokens))
    if not fits or len(tables) != len(block_sizes):
        raise WireError(
            f"a step of {len(tokens)} tokens has {num_rows} rows and {len(tables)} cache groups, "
            f"but they do not fit together"
        )
    host = batch_of(tokens, message.starts, message.lens, tables[0], block_sizes[0])
    host = replace(host, adapters=adapters)
    return StepInputs(
        host, tables, message.wanted, message.copies, message.zeroed, message.snapshots
    )


class Frames:
    """Whole frames from a socket, one after another; waits for them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = FrameReader()
        self._waiting: list[bytes] = []

    def next(self) -> bytes | None:
        """The body of the next one; None when the other side has closed."""
        while not self._waiting:
            try:
                data = self._connection.recv(RECEIVE_BYTES)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._waiting = list(self._reader.feed(data))
        return self._waiting.pop(0)
