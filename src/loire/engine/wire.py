"""What the engine's process and its supervisor say to each other, as checked msgpack.

Every message is a frame: four bytes of length (little-endian), then one msgpack map with a tag.
Frames are decoded into the types below and nothing else; one that does not fit, or claims to be
longer than MAX_FRAME_BYTES, is an error. Dataclasses of base/ cross field by field, so that a new
field needs no change here.
"""

import struct
from collections.abc import Iterator
from types import MappingProxyType
from typing import TypeAlias, TypeVar

import msgspec

from loire.base.config import EngineConfig, EngineOptions
from loire.base.errors import EngineError
from loire.base.messages import AdapterCounts, AnnouncedAdapter, EngineRequest, SequenceUpdate
from loire.base.step import StepRecord

MAX_FRAME_BYTES = 256 * 2**20
"""Longest frame: a prompt of ten million tokens, with room."""

_LENGTH = struct.Struct("<I")
_Message = TypeVar("_Message")


class WireError(EngineError):
    """The other side sent what is no message."""


class LoadModel(msgspec.Struct, frozen=True, tag=True):
    """To the engine, first of all: load this model."""

    path: str
    """The checkpoint, a directory or a GGUF file."""
    name: str
    options: EngineOptions
    tells_names: bool = False
    """Whether news say which prefixes can be found."""
    beats: bool = False
    """Whether it gives signs of life."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    """To the engine: a request, perhaps one that another engine had begun."""

    request: EngineRequest
    ended_choices: tuple[int, ...] = ()
    """Those that ended in the engine before: they are not computed any further."""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """To the engine: end a request, or one choice of it."""

    request_id: str
    choice: int | None = None


class Announce(msgspec.Struct, frozen=True, tag=True):
    """To the engine: requests may name this adapter from now on."""

    adapter: AnnouncedAdapter


class Loading(msgspec.Struct, frozen=True, tag=True):
    """From the engine: a stage of loading begins."""

    stage: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From the engine: requests are taken."""

    config: EngineConfig
    plan_lines: tuple[str, ...]
    kernels: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From the engine, its last message: the model cannot be loaded, and another try is no use."""

    kind: str
    """Name of the exception's class in base/errors.py."""
    message: str


class Begun(msgspec.Struct, frozen=True, tag=True):
    """From the engine: the step that it computes next is the first one for these requests."""

    request_ids: tuple[str, ...]


class Beat(msgspec.Struct, frozen=True, tag=True):
    """A sign of life, given all the time (loire.engine.pulse)."""


class News(msgspec.Struct, frozen=True, tag=True):
    """From the engine: what a step brought, or, without a record, that it has nothing to do."""

    updates: tuple[SequenceUpdate, ...]
    record: StepRecord | None
    num_requests: int
    """Requests that the engine holds, waiting or running."""
    blocks_in_use: int
    adapters: AdapterCounts | None = None
    """How its memory of adapters stands, when that is not as it was told before."""
    names_found: bytes = b""
    """Of prefixes that can be found from now on; see loire.memory.prefix_names."""
    names_gone: bytes = b""
    """Of those that cannot any more."""


ToEngine: TypeAlias = LoadModel | Submit | Abort | Announce
FromEngine: TypeAlias = Loading | Ready | Failed | Begun | News | Beat

_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def frame(message: msgspec.Struct) -> bytes:
    """A message as bytes with its length before it.

    Raises WireError if it has a value that cannot cross, such as text with half a surrogate pair.
    """
    try:
        body = _encoder.encode(message)
    except (UnicodeEncodeError, OverflowError, TypeError, ValueError) as error:
        raise WireError(f"{type(message).__name__} cannot be sent: {error}") from error
    return framed(body, type(message).__name__)


def framed(body: bytes, name: str = "a frame") -> bytes:
    """Bytes with their length before them. Raises WireError, by this name, if they are too many."""
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(
            f"{name} has {len(body):,} bytes, but a message may have at most {MAX_FRAME_BYTES:,}"
        )
    return _LENGTH.pack(len(body)) + body


def read_to_engine(body: bytes | memoryview) -> ToEngine:
    """A message to the engine. Raises WireError."""
    return decoded(_to_engine, body)


def read_from_engine(body: bytes | memoryview) -> FromEngine:
    """A message from the engine. Raises WireError."""
    return decoded(_from_engine, body)


class FrameReader:
    """Cuts a stream of bytes into the bodies of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are complete with this data. Raises WireError for a length too large."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                [length] = _LENGTH.unpack_from(self._buffer, start)
                if length > MAX_FRAME_BYTES:
                    raise WireError(
                        f"a frame claims {length:,} bytes, but at most {MAX_FRAME_BYTES:,} are read"
                    )
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(self._buffer[start + _LENGTH.size : end])
                start = end
                yield body
        finally:
            del self._buffer[:start]


def decoded(decoder: "msgspec.msgpack.Decoder[_Message]", body: bytes | memoryview) -> _Message:
    """A message of the decoder's types. Raises WireError."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, ValueError) as error:
        raise WireError(f"a frame of {len(body):,} bytes is no message: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} cannot cross to another process")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
