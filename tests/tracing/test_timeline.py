"""Runs say exactly what the records said."""

from dataclasses import replace

import pytest
from random_traces import random_trace

from loire.base.config import Policy
from loire.base.step import SlotRecord, StepRecord
from loire.tracing.timeline import build_timeline

CASES: list[tuple[Policy, int]] = [
    ("sequential", 1), ("static", 1), ("static", 2), ("orca", 1), ("paged", 1), ("paged", 2),
]  # fmt: skip


def step(step_id: int, *slots: SlotRecord, preemptions: int = 0) -> StepRecord:
    return StepRecord(
        step_id=step_id,
        time_s=10.0 + step_id,
        compute_s=0.5,
        slots=slots,
        num_running=len(slots),
        num_waiting=0,
        blocks_free=8,
        blocks_cached=0,
        blocks_in_use=2,
        kv_live_tokens=20,
        kv_fragmented_tokens=12,
        kv_reserved_tokens=0,
        kv_idle_tokens=0,
        num_preemptions=preemptions,
    )


def decode(seq_id: int, *, ended: bool = False, slot: int = 0) -> SlotRecord:
    return SlotRecord(slot, seq_id, f"r{seq_id}", 0, 1, ended)


def idle(seq_id: int) -> SlotRecord:
    return SlotRecord(0, seq_id, f"r{seq_id}", 0, 0, False)


@pytest.mark.parametrize(("policy", "depth"), CASES)
@pytest.mark.parametrize("seed", range(4))
def test_every_record_is_in_exactly_one_run(policy: Policy, depth: int, seed: int) -> None:
    records = random_trace(seed, policy, depth=depth)
    timeline = build_timeline(records)
    drawn = {}
    for run in timeline.runs:
        for index in range(run.first, run.end):
            assert (run.slot, index) not in drawn, "runs of a slot overlap"
            drawn[run.slot, index] = run
    num_records = 0
    for index, record in enumerate(records):
        for slot in record.slots:
            num_records += 1
            run = drawn[slot.slot, index]
            assert (run.seq_id, run.request_id) == (slot.seq_id, slot.request_id)
            computing = slot.num_prefill_tokens or slot.num_decode_tokens
            assert (run.kind in ("prefill", "decode")) == bool(computing)
            assert slot.ended == (run.ended and index == run.end - 1)
    paused = sum(run.num_steps for run in timeline.runs if run.kind == "paused")
    assert len(drawn) == num_records + paused
    for name in ("num_prefill_tokens", "num_decode_tokens"):
        recorded = sum(getattr(slot, name) for record in records for slot in record.slots)
        assert sum(getattr(run, name) for run in timeline.runs) == recorded
    assert timeline.block_size == 8


def test_the_random_load_has_what_pictures_must_show() -> None:
    paged = [record for seed in range(4) for record in random_trace(seed)]
    assert sum(record.num_preemptions for record in paged) > 3
    assert sum(record.num_prefix_hit_tokens for record in paged) > 100
    static = build_timeline(random_trace(0, "static", budget=2))
    assert {run.kind for run in static.runs} == {"prefill", "decode", "idle", "paused"}


def test_equal_steps_are_merged_and_ends_are_not() -> None:
    records = [step(0, decode(1)), step(1, decode(1)), step(2, decode(1, ended=True))]
    timeline = build_timeline([*records, step(3, decode(2))])
    assert [(run.first, run.num_steps, run.ended) for run in timeline.runs] == [
        (0, 3, True),
        (3, 1, False),
    ]


def test_an_end_from_outside_is_seen_by_the_idle_slot() -> None:
    # As when a stop string matched: the record of the last step could not know.
    timeline = build_timeline([step(0, decode(1)), step(1, idle(1)), step(2, idle(1))])
    assert [(run.kind, run.num_steps, run.ended) for run in timeline.runs] == [
        ("decode", 1, True),
        ("idle", 2, False),
    ]


def test_a_gap_is_a_pause_unless_something_was_preempted() -> None:
    def kinds(preemptions: int) -> list[str]:
        records = [
            step(0, decode(1)),
            step(1, decode(2, slot=1), preemptions=preemptions),
            step(2, decode(1)),
        ]
        return [run.kind for run in build_timeline(records).runs if run.slot == 0]

    assert kinds(0) == ["decode", "paused", "decode"]
    assert kinds(1) == ["decode", "decode"]


def test_steps_follow_one_another_in_time_even_with_a_pipeline() -> None:
    # The second step began to compute while the first was being committed.
    records = [step(0, decode(1)), replace(step(1, decode(1)), compute_s=1.5)]
    timeline = build_timeline(records)
    assert [timeline.elapsed_s(index) for index in range(3)] == [0.0, 0.5, 1.5]


def test_siblings_share_their_request() -> None:
    records = [step(0, decode(4), SlotRecord(1, 9, "r4", 0, 1, False))]
    assert {run.request_number for run in build_timeline(records).runs} == {4}
