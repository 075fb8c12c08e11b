"""Step records as runs: what each slot of the batch did, with equal steps merged.

All pictures are drawn from this one value. Steps, slots and sequences count from 0 here; pictures
show them from 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from loire.base.step import SlotRecord, StepRecord

RunKind = Literal["prefill", "decode", "idle", "paused"]
"""idle: the sequence has ended, but its batch still holds the slot. paused: it runs, but had no
token in these steps, because the token budget went to others."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive steps in which one slot did the same for one sequence."""

    slot: int
    seq_id: int
    request_id: str
    request_number: int
    """seq_id of the first sequence of its request that the trace shows: equal for siblings."""
    kind: RunKind
    first: int
    """Index of its first step among the records."""
    num_steps: int
    num_prefill_tokens: int
    num_decode_tokens: int
    ended: bool
    """Whether the sequence ended with the last of these steps."""

    @property
    def end(self) -> int:
        """Index of the step after its last."""
        return self.first + self.num_steps

    @property
    def label(self) -> str:
        """The sequence as pictures call it: S_1 is the first of the engine's life."""
        return f"S_{self.seq_id + 1}"


@dataclass(frozen=True)
class Timeline:
    """Records and their runs, by slot and then by step."""

    records: tuple[StepRecord, ...]
    runs: tuple[Run, ...]

    @cached_property
    def num_slots(self) -> int:
        """Slots that were taken at any time."""
        return max((run.slot for run in self.runs), default=-1) + 1

    @cached_property
    def started_s(self) -> tuple[float, ...]:
        """Per step the time at which it began, on the clock of StepRecord.time_s.

        With a pipeline a step begins while the one before it is being committed; in pictures
        they follow one another.
        """
        starts: list[float] = []
        previous = float("-inf")
        for record in self.records:
            starts.append(max(previous, record.time_s - record.compute_s))
            previous = record.time_s
        return tuple(starts)

    def elapsed_s(self, step: int) -> float:
        """Seconds from the beginning of the trace to the beginning of a step; one past the last
        step is the end of the trace."""
        if step < len(self.records):
            return self.started_s[step] - self.started_s[0]
        return self.records[-1].time_s - self.started_s[0]

    @cached_property
    def block_size(self) -> int | None:
        """Tokens per KV block, as the records imply; None if no block was ever in use."""
        for record in self.records:
            if record.blocks_in_use:
                return kv_slots_in_use(record) // record.blocks_in_use
        return None


def kv_slots_in_use(record: StepRecord) -> int:
    """KV slots of all blocks in use, in tokens."""
    return (
        record.kv_live_tokens
        + record.kv_fragmented_tokens
        + record.kv_reserved_tokens
        + record.kv_idle_tokens
    )


@dataclass(slots=True)
class _Growing:
    """A run that may still go on."""

    slot: SlotRecord
    kind: RunKind
    first: int
    end: int
    num_prefill_tokens: int
    num_decode_tokens: int
    ended: bool


def build_timeline(records: Sequence[StepRecord]) -> Timeline:
    """Merge the records of one engine, in the order of their steps, into runs."""
    by_slot: dict[int, list[_Growing]] = {}
    request_numbers: dict[str, int] = {}
    last_preemption = -1
    for step, record in enumerate(records):
        if record.num_preemptions:
            last_preemption = step
        for slot in record.slots:
            request_numbers.setdefault(slot.request_id, slot.seq_id)
            _add(by_slot.setdefault(slot.slot, []), slot, step, last_preemption)
    runs = (
        Run(
            slot=run.slot.slot,
            seq_id=run.slot.seq_id,
            request_id=run.slot.request_id,
            request_number=request_numbers[run.slot.request_id],
            kind=run.kind,
            first=run.first,
            num_steps=run.end - run.first,
            num_prefill_tokens=run.num_prefill_tokens,
            num_decode_tokens=run.num_decode_tokens,
            ended=run.ended,
        )
        for number in sorted(by_slot)
        for run in by_slot[number]
    )
    return Timeline(tuple(records), tuple(runs))


def _add(runs: list[_Growing], slot: SlotRecord, step: int, last_preemption: int) -> None:
    """Take one step of a slot: its last run goes on, or another begins."""
    kind: RunKind = "idle"
    if slot.num_prefill_tokens:
        kind = "prefill"
    elif slot.num_decode_tokens:
        kind = "decode"
    last = runs[-1] if runs else None
    if last is not None and last.slot.seq_id == slot.seq_id:
        if last.kind == kind and last.end == step and not last.ended:
            last.end += 1
            last.num_prefill_tokens += slot.num_prefill_tokens
            last.num_decode_tokens += slot.num_decode_tokens
            last.ended = slot.ended
            return
        if kind == "idle" and last.kind != "idle":
            # If it was ended from outside, as by a stop string, the record of its last step
            # could not know.
            last.ended = True
        elif last.end < step and last_preemption < last.end - 1 and not last.ended:
            runs.append(_Growing(slot, "paused", last.end, step, 0, 0, False))
    prefill, decode = slot.num_prefill_tokens, slot.num_decode_tokens
    runs.append(_Growing(slot, kind, step, step + 1, prefill, decode, slot.ended))
