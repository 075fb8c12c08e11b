"""Tells routers which KV blocks can be found here, in the form of vLLM's KV events over ZeroMQ.

A message has three frames: the topic, a number that counts messages (8 bytes, the highest first),
and a batch as msgpack: [time, events, rank]. Events are maps with their type. Hashes are our own;
subscribers take them for names.
"""

import time
from collections.abc import Sequence

import msgspec

from loire.base.errors import ConfigError
from loire.base.kv_events import KVEvents
from loire.memory.block_events import BlockEvent, BlocksStored

MEDIUM = "GPU"
"""vLLM's word for the memory that the model computes in, whatever that is."""
LINGER_MS = 200
"""How long the last messages are tried to be sent when the engine ends."""


class _Event(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    pass


class BlockStored(_Event, frozen=True):
    """Blocks that can be found from now on.

    Fields as in vLLM; extra_keys: per block, what names it beside its tokens.
    """

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: Sequence[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(_Event, frozen=True):
    """Blocks that can be found no more."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(_Event, frozen=True):
    """None can be found: an engine has started."""


class EventBatch(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What one step changed. ts: seconds since 1970."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class KVEventPublisher:
    """A socket that subscribers connect to. They miss what comes before they have connected, and
    what they are too slow for: the numbers of messages tell them."""

    def __init__(self, where: KVEvents) -> None:
        """Raises ConfigError if the extra is not installed or the endpoint cannot be bound."""
        try:
            import zmq
        except ImportError as error:
            raise ConfigError("KV events need pyzmq: pip install 'loire[kv-events]'") from error
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set_hwm(where.hwm)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._topic = where.topic.encode()
        self._encoder = msgspec.msgpack.Encoder()
        self._number = 0
        try:
            if _is_bound(where.endpoint):
                self._socket.bind(where.endpoint)
            else:
                self._socket.connect(where.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"KV events cannot go to {where.endpoint}: {error}") from error
        self._send([AllBlocksCleared()])

    def publish(self, events: Sequence[BlockEvent]) -> None:
        """Send what a step changed. Never blocks."""
        self._send([_told(event) for event in events])

    def close(self) -> None:
        """Send what waits, for a moment, and close."""
        self._context.destroy()

    def _send(self, events: list[BlockStored | BlockRemoved | AllBlocksCleared]) -> None:
        batch = self._encoder.encode(EventBatch(time.time(), events))
        self._socket.send_multipart([self._topic, self._number.to_bytes(8, "big"), batch])
        self._number += 1


def _is_bound(endpoint: str) -> bool:
    """As in vLLM: an endpoint with a *, of this machine's own or within it is bound; others are
    connected to, as those of a router that collects."""
    local = ("ipc://", "inproc://", "tcp://127.", "tcp://localhost", "tcp://[::")
    return "*" in endpoint or "0.0.0.0" in endpoint or endpoint.startswith(local)


def _told(event: BlockEvent) -> BlockStored | BlockRemoved:
    if not isinstance(event, BlocksStored):
        return BlockRemoved([_number(key) for key in event.keys], MEDIUM, event.group)
    return BlockStored(
        block_hashes=[_number(key) for key in event.keys],
        parent_block_hash=None if event.parent is None else _number(event.parent),
        token_ids=event.token_ids,
        block_size=event.block_size,
        lora_id=None,
        medium=MEDIUM,
        lora_name=event.adapter or None,
        extra_keys=[(event.adapter,)] * len(event.keys) if event.adapter else None,
        group_idx=event.group,
        kv_cache_spec_kind="full_attention" if event.window is None else "sliding_window",
        kv_cache_spec_sliding_window=event.window,
    )


def _number(key: bytes) -> int:
    """vLLM's form by default: 64 bits of the hash."""
    return int.from_bytes(key[:8], "big")
