"""KV events on their way to a router: read back with the types that vLLM's own decoder has."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from loire.base.cache_geometry import one_group
from loire.base.errors import ConfigError
from loire.base.kv_events import DEFAULT_ENDPOINT, KVEvents, parse_kv_events
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.engine.core import EngineCore
from loire.engine.kv_events import KVEventPublisher
from loire.memory.block_events import BlockEvent, BlocksRemoved, BlocksStored
from loire.memory.paged import PagedAllocator
from loire.scheduling.batching import Continuous
from loire.scheduling.scheduler import Scheduler
from support.fake_execution import FakeExecutor


class KVCacheEvent(msgspec.Struct, omit_defaults=True, tag=True):
    """From here on as in vllm/distributed/kv_events.py (0.31)."""


class BlockStored(KVCacheEvent):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(KVCacheEvent):
    block_hashes: list[bytes | int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(KVCacheEvent):
    pass


class KVEventBatch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


def test_three_frames_that_vllms_decoder_reads(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.RCVTIMEO, 60_000)
    subscriber.connect(endpoint)
    subscriber.subscribe(b"kv@")
    publisher = KVEventPublisher(KVEvents(endpoint=endpoint, topic="kv@pod@model"))
    stored = BlocksStored(0, (b"a" * 32, b"b" * 32), None, tuple(range(8)), 4, None, "adapter")
    removed = BlocksRemoved(1, (b"c" * 32,))
    try:
        # A subscriber misses what is sent before it is connected.
        while not subscriber.poll(10):
            publisher.publish([stored, removed])
        topic, number, data = subscriber.recv_multipart()
        publisher.publish([removed])
        following = subscriber.recv_multipart()
        while subscriber.poll(100):
            following = subscriber.recv_multipart()
    finally:
        publisher.close()
        context.destroy(linger=0)
    assert topic == b"kv@pod@model"
    assert int.from_bytes(following[1], "big") > int.from_bytes(number, "big")
    assert len(number) == 8
    name = int.from_bytes(b"a" * 8, "big")
    event = msgspec.msgpack.decode(data, type=KVEventBatch).events[0]
    assert isinstance(event, BlockStored)
    assert event.block_hashes[0] == name
    assert (event.parent_block_hash, event.token_ids) == (None, [*range(8)])
    assert (event.lora_name, event.extra_keys) == ("adapter", [("adapter",)] * 2)
    assert (event.group_idx, event.kv_cache_spec_kind) == (0, "full_attention")
    last = msgspec.msgpack.decode(following[2], type=KVEventBatch).events
    assert last == [BlockRemoved([int.from_bytes(b"c" * 8, "big")], "GPU", 1)]
    if find_spec("vllm") is not None:  # its own, where it is installed
        from vllm.distributed.kv_events import KVEventBatch as Theirs

        [theirs, gone] = msgspec.msgpack.decode(data, type=Theirs).events
        assert (theirs.token_ids, theirs.group_idx, gone.group_idx) == ([*range(8)], 0, 1)


def _request(name: str, tokens: range, cache_salt: str = "") -> EngineRequest:
    return EngineRequest(
        request_id=name,
        prompt_token_ids=tuple(tokens),
        params=SamplingParams(max_tokens=1, temperature=0.0),
        seed=0,
        cache_salt=cache_salt,
    )


def test_a_core_tells_of_its_blocks_but_not_of_private_ones() -> None:
    allocator = PagedAllocator(8, one_group(4), prefix_caching=True, notes_events=True)
    scheduler = Scheduler(
        allocator, Continuous(4), max_num_batched_tokens=64, max_model_len=32, background_tokens=64
    )
    core = EngineCore(scheduler, FakeExecutor(8, one_group(4)))
    told: list[BlockEvent] = []
    core.on_blocks = told.extend
    core.add(_request("open", range(1, 10)))
    core.add(_request("secret", range(20, 30), "tenant"))
    while core.has_work:
        core.step()
    (event,) = told
    assert isinstance(event, BlocksStored)
    assert event.token_ids == tuple(range(1, 9))
    assert event.parent is None
    assert len(event.keys) == 2


def test_the_flag_has_vllms_words() -> None:
    given = parse_kv_events(
        '{"enable_kv_cache_events": true, "publisher": "zmq", "topic": "t", "buffer_steps": 9}'
    )
    assert given == KVEvents(endpoint=DEFAULT_ENDPOINT, topic="t")
    assert parse_kv_events('{"enable_kv_cache_events": false}') is None
    assert parse_kv_events('{"publisher": "null"}') is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tcp://*:5557", "no JSON"),
        ("[]", "JSON object"),
        ('{"port": 5557}', "no 'port'"),
        ('{"hwm": 0}', "at least 1"),
        ('{"topic": 3}', "topic is a str"),
        ('{"publisher": "kafka"}', "'kafka'"),
        ('{"replay_endpoint": "tcp://*:5558"}', "replay_endpoint"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_kv_events(text)


def test_an_endpoint_that_cannot_be_bound_is_refused_in_words(tmp_path: Path) -> None:
    missing = f"ipc://{tmp_path}/no/such/folder"
    with pytest.raises(ConfigError, match="no/such/folder"):
        KVEventPublisher(KVEvents(endpoint=missing))
