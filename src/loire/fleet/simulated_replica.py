"""A replica in simulated time: the real scheduler and KV memory, and steps that only take time.

While nothing arrives or ends, decode steps are all alike: they are taken in one leap, which leaves
the scheduler and the memory as the same number of steps would. A leap is carried out when it ends,
so that an arrival can still cut it short after the step in which it falls.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from loire.base.cache_geometry import one_group
from loire.base.errors import EngineError
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.step import RowResult, StepPlan, StepResult
from loire.fleet.arrivals import OUTPUT_TOKEN
from loire.fleet.placement import Replica
from loire.fleet.step_costs import StepCosts, Work
from loire.memory.paged import PagedAllocator
from loire.scheduling.batching import Continuous
from loire.scheduling.scheduler import Scheduler
from loire.scheduling.sequence import Sequence

BACKGROUND_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """What an engine of the fleet is. Sizes in tokens; see EngineOptions."""

    kv_tokens: int = 400_000
    """Of its KV pool."""
    block_size: int = 128
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048

    @property
    def num_blocks(self) -> int:
        """Of its KV pool."""
        return self.kv_tokens // self.block_size


@dataclass(frozen=True, slots=True)
class _Leap:
    """Decode steps one after the other, from start_s on."""

    start_s: float
    num_steps: int
    num_rows: int
    context: int
    costs: StepCosts

    def end_s(self, num_steps: int) -> float:
        """When so many of its steps are done."""
        return self.start_s + self.costs.decode_s(num_steps, self.num_rows, self.context)

    def steps_until(self, now_s: float) -> int:
        """Steps that are done then, the one that is under way included."""
        return 1 + bisect_left(range(1, self.num_steps), now_s, key=self.end_s)


class SimulatedReplica:
    """One engine. begin() and finish() alternate; whoever calls them keeps the time.

    leaps: whether equal steps are taken at once; the outcome is the same either way.
    """

    def __init__(
        self,
        name: str,
        options: ReplicaOptions,
        costs: StepCosts,
        *,
        leaps: bool = True,
        tells_names: bool = False,
    ) -> None:
        """tells_names: for take_names()."""
        self.replica = Replica(name, options.num_blocks, options.block_size)
        self.options = options
        self.busy_s = 0.0
        self.num_steps = 0
        self.num_waiting_tokens = 0
        """Prompt tokens of requests that nothing is computed of yet."""
        self._costs = costs
        self._leaps = leaps
        self._now_s = 0.0
        self._allocator = PagedAllocator(
            options.num_blocks,
            one_group(options.block_size),
            prefix_caching=True,
            notes_names=tells_names,
        )
        self._scheduler = Scheduler(
            self._allocator,
            Continuous(options.max_num_seqs),
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_model_len=options.num_blocks * options.block_size,
            background_tokens=BACKGROUND_TOKENS,
            clock=lambda: self._now_s,
        )
        self._waiting: dict[str, int] = {}
        self._doing: StepPlan | _Leap | None = None
        self._step_s = 0.0
        self._settled = False
        """Whether the next steps will be as the last one was."""

    @property
    def idle(self) -> bool:
        """Whether no step is under way."""
        return self._doing is None

    @property
    def waiting_ids(self) -> tuple[str, ...]:
        """Requests that nothing is computed of yet, in order of arrival."""
        return tuple(self._waiting)

    @property
    def num_requests(self) -> int:
        """Unfinished ones."""
        return self._scheduler.num_requests

    @property
    def num_preemptions(self) -> int:
        """So far."""
        return self._scheduler.num_preemptions

    @property
    def occupancy(self) -> float:
        """Share of slots or of KV memory in use, whichever is larger."""
        slots = len(self._scheduler.running) / self.options.max_num_seqs
        return max(slots, self._allocator.counts.in_use / self.options.num_blocks)

    def add(self, request: EngineRequest, now_s: float) -> float | None:
        """Take in a request; when the step under way ends, if there is one: a leap becomes shorter.

        Raises ValueError if the id is in use.
        """
        self._scheduler.add(request)
        self._waiting[request.request_id] = len(request.prompt_token_ids)
        self.num_waiting_tokens += len(request.prompt_token_ids)
        self._settled = False
        if isinstance(self._doing, _Leap):
            leap = self._doing
            steps = leap.steps_until(now_s)
            self._doing = _Leap(leap.start_s, steps, leap.num_rows, leap.context, leap.costs)
            self._step_s = self._doing.end_s(steps) - leap.start_s
            return self._doing.end_s(steps)
        return None

    def withdraw(self, request_id: str) -> None:
        """Take back a request that nothing is computed of yet."""
        self.num_waiting_tokens -= self._waiting.pop(request_id)
        self._scheduler.abort(request_id)

    def begin(self, now_s: float) -> float | None:
        """Begin the next step, or leap; when it ends. None if there is nothing to do."""
        assert self._doing is None, "a step is under way"
        self._now_s = now_s
        if self._leaps and self._settled and (steps := self._steps_alike()) > 1:
            running = self._scheduler.running
            context = sum(len(sequence.tokens) for sequence in running)
            self._doing = _Leap(now_s, steps, len(running), context, self._costs)
            self._step_s = self._doing.end_s(steps) - now_s
            return now_s + self._step_s
        before = self._scheduler.num_preemptions
        plan = self._scheduler.schedule()
        if plan is None:
            if self._scheduler.has_unfinished:
                raise EngineError(f"{self.num_requests} requests, but nothing to compute")
            return None
        for request_id in self._scheduler.request_ids(plan.new_sequences):
            self.num_waiting_tokens -= self._waiting.pop(request_id, 0)
        self._doing = plan
        self._step_s = self._costs.step_s(Work.of(plan))
        self._settled = (
            not plan.new_sequences
            and self._scheduler.num_preemptions == before
            and len(plan.rows) == len(self._scheduler.running)
            and all(len(row.token_ids) == 1 and row.samples for row in plan.rows)
        )
        return now_s + self._step_s

    def finish(self, now_s: float) -> list[SequenceUpdate]:
        """The step, or leap, has ended: its news. A leap has none that matter: no sequence began or
        ended in it."""
        doing, self._doing = self._doing, None
        assert doing is not None, "no step is under way"
        self._now_s = now_s
        self.busy_s += self._step_s
        if isinstance(doing, _Leap):
            self.num_steps += doing.num_steps
            self._advance(doing.num_steps)
            return []
        self.num_steps += 1
        rows = tuple(
            RowResult(row.seq_id, row.epoch, (OUTPUT_TOKEN,) if row.samples else ())
            for row in doing.rows
        )
        updates, _ = self._scheduler.commit(StepResult(doing.step_id, rows, self._step_s))
        if any(update.finish_reason is not None for update in updates):
            self._settled = False
        return updates

    def take_names(self) -> tuple[bytes, bytes]:
        """Of prefixes that can be found, and no more, since the last time."""
        return self._allocator.take_names()

    def abandon(self, now_s: float) -> dict[str, int]:
        """The replica goes; what is under way is lost. Tokens that each unfinished request gave."""
        if isinstance(self._doing, _Leap):
            self._advance(self._doing.steps_until(now_s) - 1)
        self._doing = None
        gave = dict.fromkeys(self._waiting, 0)
        for sequence in self._unfinished():
            gave[sequence.request.message.request_id] = sequence.num_output
        return gave

    def _unfinished(self) -> Iterable[Sequence]:
        yield from self._scheduler.running
        yield from self._scheduler.waiting.in_turn()

    def _steps_alike(self) -> int:
        """How many steps can be taken at once: none of them ends a sequence or lacks a block."""
        running = self._scheduler.running
        if not running or len(running) > self.options.max_num_batched_tokens:
            return 0
        steps = min(sequence.max_tokens - len(sequence.tokens) for sequence in running) - 1
        available = self._allocator.pool.num_available
        while steps > 1 and self._blocks_needed(steps) > available:
            steps //= 2
        return steps

    def _blocks_needed(self, num_steps: int) -> int:
        size = self.options.block_size
        return sum(
            max(-(-(s.start + num_steps) // size) - len(s.table.groups[0].blocks), 0)
            for s in self._scheduler.running
        )

    def _advance(self, num_steps: int) -> None:
        """What so many decode steps do to every running sequence."""
        if not num_steps:
            return
        for sequence in self._scheduler.running:
            start = sequence.start
            operations = self._allocator.extend(sequence.table, start, start + num_steps)
            assert operations is not None, "a leap was planned for memory that is not there"
            sequence.tokens += [OUTPUT_TOKEN] * num_steps
            sequence.num_computed += num_steps
            self._allocator.publish(sequence.table, sequence.tokens, sequence.num_computed)
            self._scheduler.waiting.charge(sequence, num_output=num_steps)
