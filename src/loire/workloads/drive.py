"""Plays a load on an engine core in real time, and notes what became of each request.

Requests declare max_tokens = the cap, as a server would see it, and end at their drawn length,
which only this file knows: policies and allocators cannot see it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from loire.base.errors import EngineError
from loire.base.executor import ComputedStep, StepExecutor
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.sampling import SamplingParams
from loire.base.step import NewSequence, RowResult, StepPlan, StepRecord, StepResult
from loire.engine.core import EngineCore
from loire.workloads.loads import Load

STOP_TOKEN = 2**31 - 1
"""In no vocabulary: no model samples it by itself."""


class EndingExecutor:
    """Lets each sequence end at a length of its own, as if the model had said so.

    Requests are told apart by their seed, which is their index.
    """

    def __init__(self, executor: StepExecutor, lengths: list[int]) -> None:
        self.num_kv_tokens_read = 0
        """Keys (and values) that attention read: the contexts of all rows of all steps."""
        self._executor = executor
        self._lengths = lengths
        self._sequences: dict[int, NewSequence] = {}

    def launch(self, plan: StepPlan) -> ComputedStep:
        """The step, with the token that ends a sequence in place of the one after its last."""
        for seq_id in plan.ended:
            self._sequences.pop(seq_id, None)
        self._sequences.update((new.seq_id, new) for new in plan.new_sequences)
        result = self._executor.launch(plan).result()
        rows: list[RowResult] = []
        for row, outcome in zip(plan.rows, result.rows, strict=True):
            end = row.start + len(row.token_ids)
            self.num_kv_tokens_read += end
            sequence = self._sequences[row.seq_id]
            position = end + 1 - len(sequence.prompt_token_ids)
            if row.samples and position >= self._lengths[sequence.seed]:
                outcome = RowResult(row.seq_id, row.epoch, (STOP_TOKEN,), error=outcome.error)
            rows.append(outcome)
        return ComputedStep(StepResult(result.step_id, tuple(rows), result.compute_s))


@dataclass(slots=True)
class Played:
    """One request of a load. Times in seconds after the start."""

    arrival_s: float
    num_prompt: int
    scheduled_s: float | None = None
    first_token_s: float | None = None
    end_s: float | None = None
    num_output: int = 0
    num_cached: int = 0


@dataclass(frozen=True, slots=True)
class Playback:
    """What a load gave."""

    requests: list[Played]
    records: list[StepRecord]
    wall_s: float
    num_kv_tokens_read: int
    external_fragmentation: list[int] = field(default_factory=list)
    """Per step, free blocks outside the longest free run (reserved memory only)."""


class MakeCore(Protocol):
    """Makes an idle core."""

    def __call__(self, *, around: Callable[[StepExecutor], StepExecutor]) -> EngineCore:
        """around: wraps the executor."""
        ...


def play(
    make_core: MakeCore,
    load: Load,
    cap: int,
    *,
    progress: Callable[[float], None] = lambda share: None,
) -> Playback:
    """Submit each request at its arrival time, and step until all have ended.

    cap: max_tokens of every request. progress: told the share of requests that have ended.
    """
    lengths = [request.num_output for request in load.requests]
    wrappers: list[EndingExecutor] = []

    def around(executor: StepExecutor) -> StepExecutor:
        wrappers.append(EndingExecutor(executor, lengths))
        return wrappers[-1]

    core = make_core(around=around)
    start = time.monotonic()
    played = [Played(r.arrival_s, len(r.prompt_token_ids)) for r in load.requests]
    records: list[StepRecord] = []
    lost: list[int] = []
    submitted = ended = 0
    while ended < len(played):
        now = time.monotonic() - start
        while submitted < len(played) and played[submitted].arrival_s <= now:
            core.add(_request(submitted, load, cap))
            submitted += 1
        if not core.has_work:
            time.sleep(max(played[submitted].arrival_s - now, 0.0))
            continue
        updates = core.step()
        now = time.monotonic() - start
        for update in updates:
            ended += _note(played[int(update.request_id)], update, now, start)
        records.append(core.records[-1])
        lost.append(_outside_longest_run(core))
        progress(ended / len(played))
    wall_s = time.monotonic() - start
    core.close()
    return Playback(played, records, wall_s, wrappers[0].num_kv_tokens_read, lost)


def _request(index: int, load: Load, cap: int) -> EngineRequest:
    return EngineRequest(
        request_id=str(index),
        prompt_token_ids=load.requests[index].prompt_token_ids,
        params=SamplingParams(temperature=0.0, max_tokens=cap, ignore_eos=True),
        seed=index,
        stop_token_ids=(STOP_TOKEN,),
    )


def _note(request: Played, update: SequenceUpdate, now: float, start: float) -> bool:
    """Write down the news; whether it was the last of the request."""
    if update.error is not None:
        raise EngineError(f"request {update.request_id} failed: {update.error}")
    request.num_output += len(update.token_ids)
    request.num_cached = update.num_cached_tokens
    if update.first_scheduled_s is not None:
        request.scheduled_s = update.first_scheduled_s - start
    if update.token_ids and request.first_token_s is None:
        request.first_token_s = now
    if update.finish_reason is None:
        return False
    request.end_s = now
    return True


def _outside_longest_run(core: EngineCore) -> int:
    allocator = core.scheduler.allocator
    longest: int | None = getattr(allocator, "largest_free_run", None)
    return 0 if longest is None else allocator.counts.free - longest
