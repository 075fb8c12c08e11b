"""What fronts and replicas say to each other: lists of typed messages as checked msgpack.

A front sends what the engine's process takes, Submit, Abort and Announce (loire.engine.wire). A
replica's words are below. A request's id on the way is the front's name, a number that no other
sending of the front had, and its own id: fronts need not know of each other, and news of an earlier
sending cannot be taken for those of a later one. Clocks differ between machines: with its news a
replica tells what its own clock says.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import TypeAlias, TypeVar

import msgspec

from loire.base.config import EngineConfig
from loire.base.messages import AdapterCounts, SequenceUpdate
from loire.engine.wire import Abort, Announce, Beat, Submit, WireError

WIRE_VERSION = 3
"""Of these messages and all that is in them. Fronts and replicas of different versions part."""


class Joined(msgspec.Struct, frozen=True, tag=True):
    """From a replica, first of all and after each Lost: there is an engine, and it is this one."""

    name: str
    config: EngineConfig
    numbers: str
    """What decides its results to the bit."""
    model: str
    """Digest of the model's configuration and tokenizer: fronts and replicas must agree on it."""
    plan_lines: tuple[str, ...] = ()


class Begun(msgspec.Struct, frozen=True, tag=True):
    """From a replica: the step that it computes next is the first one for these requests."""

    request_ids: tuple[str, ...]


class News(msgspec.Struct, frozen=True, tag=True):
    """From a replica: what a step brought."""

    updates: tuple[SequenceUpdate, ...]
    now_s: float
    """The replica's monotonic clock, by which the times in the updates are."""
    num_requests: int
    blocks_in_use: int
    adapters: AdapterCounts = AdapterCounts()


class AdapterChecked(msgspec.Struct, frozen=True, tag=True):
    """From a replica: whether requests for an adapter that the front announced may come."""

    identity: str
    refusal: str = ""
    """Why not; empty if they may."""


class Blocks(msgspec.Struct, frozen=True, tag=True):
    """From a replica: prefixes that it can find from now on, and no more, by their names
    (loire.memory.prefix_names). After Joined come all that it can find."""

    stored: bytes = b""
    evicted: bytes = b""


class Lost(msgspec.Struct, frozen=True, tag=True):
    """From a replica: its engine died, or stands still, with all that it was computing. Joined
    follows when there is another one, or when it has moved again."""

    reason: str


class Draining(msgspec.Struct, frozen=True, tag=True):
    """From a replica, its last message but news: it will stop soon."""


_M = TypeVar("_M")

FromReplica: TypeAlias = Joined | Begun | News | Blocks | AdapterChecked | Lost | Draining | Beat
ToReplica: TypeAlias = Submit | Abort | Announce

_from_replica: msgspec.msgpack.Decoder[list[FromReplica]] = msgspec.msgpack.Decoder(
    list[FromReplica]
)
_to_replica: msgspec.msgpack.Decoder[list[ToReplica]] = msgspec.msgpack.Decoder(list[ToReplica])


def encode(messages: Sequence[FromReplica] | Sequence[ToReplica]) -> bytes:
    """Messages as bytes. Raises WireError if one has a value that cannot cross."""
    try:
        return _encoder.encode(messages)
    except (UnicodeEncodeError, OverflowError, TypeError, ValueError) as error:
        raise WireError(f"a message cannot be sent: {error}") from error


def read_from_replica(data: bytes) -> list[FromReplica]:
    """Messages of a replica. Raises WireError."""
    return _decode(_from_replica, data)


def read_to_replica(data: bytes) -> list[ToReplica]:
    """Messages of a front. Raises WireError."""
    return _decode(_to_replica, data)


def _decode(decoder: "msgspec.msgpack.Decoder[list[_M]]", data: bytes) -> "list[_M]":
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise WireError(f"{len(data):,} bytes are no messages: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} cannot cross to another process")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
