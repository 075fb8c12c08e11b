"""The record of a step: who was in the batch, and what the KV memory in use holds."""

import time
from collections.abc import Callable, Iterable

from loire.base.step import SlotRecord, StepRecord, StepResult
from loire.memory.allocator import KVAllocator
from loire.scheduling.sequence import Sequence, Status


class StepRecorder:
    """Makes the records of one scheduler's steps.

    Attributes:
        num_hit_tokens: prompt tokens found in the cache since the last record.
        num_preemptions: preemptions since the last record.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_hit_tokens = 0
        self.num_preemptions = 0
        self._clock = clock
        self._last: dict[int, SlotRecord] = {}

    def slot(
        self, sequence: Sequence, slot: int, num_prefill_tokens: int, num_decode_tokens: int
    ) -> SlotRecord:
        """What the sequence did in a step. slot: the one it had then; it may have left it since.

        Most sequences do the same in every step, so the record of the step before is used again.
        """
        computed = num_prefill_tokens + num_decode_tokens > 0
        ended = computed and sequence.status is Status.ENDED
        num_blocks = sequence.table.num_own
        last = self._last.get(sequence.seq_id)
        if (
            last is not None
            and last.slot == slot
            and last.num_prefill_tokens == num_prefill_tokens
            and last.num_decode_tokens == num_decode_tokens
            and last.ended == ended
            and last.num_blocks == num_blocks
        ):
            return last
        return SlotRecord(
            slot=slot,
            seq_id=sequence.seq_id,
            request_id=sequence.request.message.request_id,
            num_prefill_tokens=num_prefill_tokens,
            num_decode_tokens=num_decode_tokens,
            ended=ended,
            num_blocks=num_blocks,
        )

    def record(
        self,
        result: StepResult,
        active: list[SlotRecord],
        running: Iterable[Sequence],
        held: Iterable[Sequence],
        num_waiting: int,
        allocator: KVAllocator,
    ) -> StepRecord:
        """The step whose result was just committed. active: the sequences that had a row.

        held: ended sequences that keep their slot and memory; they are recorded as idle.
        """
        served = {slot.seq_id for slot in active}
        idle = [self.slot(s, s.slot, 0, 0) for s in held if s.seq_id not in served]
        slots = (*active, *idle)
        self._last = {slot.seq_id: slot for slot in slots}
        geometry = allocator.geometry
        size = geometry.block_size
        sizes = [group.block_size for group in geometry.groups]
        num_running = num_reserved = 0
        fragmented = 0.0
        for sequence in running:
            num_running += 1
            start = sequence.start
            for group, tokens in zip(sequence.table.groups, sizes, strict=True):
                if tokens:
                    blocks, rest = divmod(len(group.blocks) * tokens - start, tokens)
                    num_reserved += blocks
                    fragmented += rest * size / tokens
        ended = size * sum(g.num_held for sequence in held for g in sequence.table.groups)
        whole, reserved = int(fragmented), size * num_reserved
        counts = allocator.counts
        record = StepRecord(
            step_id=result.step_id,
            time_s=self._clock(),
            compute_s=result.compute_s,
            slots=slots,
            num_running=num_running,
            num_waiting=num_waiting,
            blocks_free=counts.free,
            blocks_cached=counts.cached,
            blocks_in_use=counts.in_use,
            # What sequences share is in use once, so live tokens are counted from the pool's side.
            kv_live_tokens=counts.in_use * size - whole - reserved - ended,
            kv_fragmented_tokens=whole,
            kv_reserved_tokens=reserved,
            kv_idle_tokens=ended,
            num_preemptions=self.num_preemptions,
            num_prefix_hit_tokens=self.num_hit_tokens,
        )
        self.num_hit_tokens = self.num_preemptions = 0
        return record
