"""What a playback says of a policy. Shares of KV memory are averages over the time of the steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loire.base.step import StepRecord
from loire.workloads.drive import Playback, Played


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of some seconds; all zero of nothing."""

    p50: float
    p95: float
    p99: float
    mean: float

    @staticmethod
    def of(values: Sequence[float]) -> "Percentiles":
        """By nearest rank: the smallest value that covers at least that share of the values."""
        if not values:
            return Percentiles(0.0, 0.0, 0.0, 0.0)
        ordered = sorted(values)

        def rank(share: float) -> float:
            return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]

        return Percentiles(rank(0.50), rank(0.95), rank(0.99), sum(ordered) / len(ordered))


@dataclass(frozen=True, slots=True)
class Objective:
    """A service-level objective; a request meets it with both."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """One policy under one load. Times in seconds, shares of 1, rates per second of wall time."""

    name: str
    wall_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    busy_share: float
    """Time in which a step was computed, of the wall time."""
    mean_batch: float
    """Sequences that computed something, per step."""
    largest_batch: int
    ttft_s: Percentiles
    tpot_s: Percentiles
    queue_s: Percentiles
    goodput: float
    """Share of the requests that met the objective."""
    preemptions: int
    prefix_hit_rate: float
    """Prompt tokens found in the cache, of all prompt tokens."""
    kv_live_share: float
    """Distinct live tokens, of the slots of blocks in use."""
    kv_pool_share: float
    """Distinct live tokens, of the slots of the whole pool."""
    kv_fragmented_share: float
    """Of the slots of blocks in use: the unused rest of last blocks."""
    kv_reserved_share: float
    """Of the slots of blocks in use: held for tokens to come."""
    kv_idle_share: float
    """Of the slots of blocks in use: held by ended sequences until their batch ends."""
    kv_external_fragmentation: float
    """Of the pool: free, but not in the longest free run."""
    steps: int
    computed_tokens: int
    weight_bytes_read: int
    kv_bytes_read: int


def report(
    name: str,
    playback: Playback,
    objective: Objective,
    *,
    block_size: int,
    num_blocks: int,
    step_bytes: Callable[[int], int],
    kv_bytes_per_token: int,
) -> PolicyReport:
    """Sum up a playback. step_bytes: of weights that a step of so many tokens reads."""
    requests, records = playback.requests, playback.records
    tokens = [
        sum(slot.num_prefill_tokens + slot.num_decode_tokens for slot in record.slots)
        for record in records
    ]
    num_output = sum(request.num_output for request in requests)
    num_prompt = sum(request.num_prompt for request in requests)
    active = [
        sum(slot.num_prefill_tokens + slot.num_decode_tokens > 0 for slot in record.slots)
        for record in records
    ]
    memory = _memory_shares(playback, block_size, num_blocks)
    met = sum(_ttft(r) <= objective.ttft_s and _tpot(r) <= objective.tpot_s for r in requests)
    return PolicyReport(
        name=name,
        wall_s=playback.wall_s,
        output_tokens_per_s=num_output / playback.wall_s,
        total_tokens_per_s=(num_output + num_prompt) / playback.wall_s,
        busy_share=sum(record.compute_s for record in records) / playback.wall_s,
        mean_batch=sum(active) / len(active),
        largest_batch=max(active),
        ttft_s=Percentiles.of([_ttft(request) for request in requests]),
        tpot_s=Percentiles.of([_tpot(request) for request in requests if request.num_output > 1]),
        queue_s=Percentiles.of([(r.scheduled_s or 0.0) - r.arrival_s for r in requests]),
        goodput=met / len(requests),
        preemptions=sum(record.num_preemptions for record in records),
        prefix_hit_rate=sum(request.num_cached for request in requests) / num_prompt,
        steps=len(records),
        computed_tokens=sum(tokens),
        weight_bytes_read=sum(map(step_bytes, tokens)),
        kv_bytes_read=playback.num_kv_tokens_read * kv_bytes_per_token,
        **memory,
    )


def _memory_shares(playback: Playback, block_size: int, num_blocks: int) -> dict[str, float]:
    """Sums over the steps, weighted by how long each took."""
    live = fragmented = reserved = idle = in_use = outside = 0.0
    total_s = 0.0
    for record, lost, seconds in zip(
        playback.records, playback.external_fragmentation, _durations(playback.records), strict=True
    ):
        live += seconds * record.kv_live_tokens
        fragmented += seconds * record.kv_fragmented_tokens
        reserved += seconds * record.kv_reserved_tokens
        idle += seconds * record.kv_idle_tokens
        in_use += seconds * record.blocks_in_use * block_size
        outside += seconds * lost
        total_s += seconds
    pool = total_s * num_blocks * block_size
    held = in_use or 1.0
    return {
        "kv_live_share": live / held,
        "kv_pool_share": live / pool,
        "kv_fragmented_share": fragmented / held,
        "kv_reserved_share": reserved / held,
        "kv_idle_share": idle / held,
        "kv_external_fragmentation": outside * block_size / pool,
    }


def _durations(records: Sequence[StepRecord]) -> list[float]:
    return [max(record.compute_s, 1e-9) for record in records]


def _ttft(request: Played) -> float:
    assert request.first_token_s is not None
    return request.first_token_s - request.arrival_s


def _tpot(request: Played) -> float:
    assert request.first_token_s is not None
    assert request.end_s is not None
    if request.num_output < 2:
        return 0.0
    return (request.end_s - request.first_token_s) / (request.num_output - 1)
