"""The scheduler: each step it decides who computes how many tokens, and takes results back.

The order of sequences is by priority (lower is earlier), then by when they first ran. Those that
wait to run for the first time take turns by tenant (loire.scheduling.fairness), and within a
tenant come by arrival. Rules, in this order:
1. A waiting sequence enters in the place of running ones of less urgent priorities, if they have
   the slot or the memory that it needs: the last in order are preempted. So it does, among equal
   priorities, in the place of a tenant that has at least two slots more, or holds more memory.
2. Every running sequence gets one token of the budget; if the budget is smaller than their
   number, they take turns, the least recently served first. What is left goes to those with more
   to compute (prefill), shared among tenants, in order within each; what is meant for one whose
   first sequence is about to enter is kept for it. While several tenants are there, it is no more
   than a step that is over soon, and as much again for tenants that generate nothing yet and whose
   prompts end with it; beside sequences of one tenant that generate, four times as much. Background
   work (loire.scheduling.budget) comes after all others.
3. Memory goes to the first in order first. Where it runs out, the last is preempted, of the tenant
   that holds most of those who come later: it gives everything back, keeps its tokens, and is
   recomputed later. The first never is.
4. What is left of the budget admits waiting sequences in order, as far as the batching policy and
   the memory allow. One that waits for a prefix another is computing lets others pass.

A priority may wait for as long as more urgent ones keep the engine full; within a priority, the
oldest request always goes on.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from itertools import count

from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.outputs import FinishReason
from loire.base.step import (
    NewSequence,
    RowResult,
    SlotRecord,
    StepPlan,
    StepRecord,
    StepResult,
    StepRow,
)
from loire.memory.allocator import KVAllocator
from loire.scheduling.batch import RunningBatch
from loire.scheduling.batching import BatchingPolicy
from loire.scheduling.budget import Rows, TokenBudget
from loire.scheduling.context_cost import EQUAL, ContextCost
from loire.scheduling.drafting import Drafter
from loire.scheduling.entrance import Entrance
from loire.scheduling.fairness import first_to_give_way
from loire.scheduling.recording import StepRecorder
from loire.scheduling.sequence import Request, Sequence, Status
from loire.scheduling.waiting import WaitingQueue


class Scheduler:
    """Owns all requests from arrival to end. Not thread-safe: one loop drives it.

    schedule() and commit() alternate; with a pipeline, schedule() may run ahead by a step.
    """

    def __init__(
        self,
        allocator: KVAllocator,
        policy: BatchingPolicy,
        *,
        max_num_batched_tokens: int,
        max_model_len: int,
        background_tokens: int,
        context_cost: ContextCost = EQUAL,
        clock: Callable[[], float] = time.monotonic,
        computed_by: str = "",
    ) -> None:
        """clock: seconds for the times in records and updates; no decision depends on it."""
        self.allocator = allocator
        self.policy = policy
        self.budget = TokenBudget(max_num_batched_tokens, background_tokens, context_cost)
        self.max_model_len = max_model_len
        self.waiting = WaitingQueue()
        self._recorder = StepRecorder(clock)
        self.batch = RunningBatch(allocator, policy, self.waiting, self._recorder, clock)
        self.entrance = Entrance(allocator, policy, self.budget, self.waiting, self.batch)
        self.drafter: Drafter | None = None
        """Guesses tokens of those who decode, if anybody does."""
        self._requests: dict[str, Request] = {}
        self._sequences: dict[int, Sequence] = {}
        self._num_with_adapter: Counter[str] = Counter()
        self._in_flight: deque[StepPlan] = deque()
        self._step_ids = count()
        self._seq_ids = count()
        self._arrivals = count()
        self._computed_by = computed_by

    @property
    def num_preemptions(self) -> int:
        """Since the start."""
        return self.batch.num_preemptions

    @property
    def running(self) -> list[Sequence]:
        """Those that are in the batch and have tokens to compute, in order."""
        return self.batch.running

    @property
    def has_unfinished(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._requests)

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def wants_adapter(self, adapter: str) -> bool:
        """Whether any request is for the adapter of that content. Any thread may ask."""
        return self._num_with_adapter.get(adapter, 0) > 0

    def request_ids(self, sequences: Iterable[NewSequence]) -> tuple[str, ...]:
        """The requests that sequences of a plan which was just made belong to, each once."""
        owners = (self._sequences[sequence.seq_id].request for sequence in sequences)
        return tuple(dict.fromkeys(request.message.request_id for request in owners))

    def add(self, message: EngineRequest) -> None:
        """Take in a request: its first sequence waits; siblings follow after the prefill.

        A resumed request brings its own outputs: then all sequences wait from the start.
        """
        if message.request_id in self._requests:
            raise ValueError(f"request id {message.request_id!r} is in use")
        request = Request(message, next(self._arrivals))
        self._requests[message.request_id] = request
        self._num_with_adapter[message.adapter] += 1
        num_now = message.params.n if message.output_token_ids else 1
        request.num_unborn = message.params.n - num_now
        for choice in range(num_now):
            sequence = self._new_sequence(request, choice)
            self._enqueue(sequence, arrives=True)

    def abort(self, request_id: str) -> bool:
        """End a request without further news of it; False if it is not here (any more)."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._end_request(request)
        return True

    def abort_all(self) -> None:
        """End all requests without further news of them."""
        for request in tuple(self._requests.values()):
            self._end_request(request)

    def abort_choice(self, request_id: str, choice: int) -> bool:
        """End one completion of a request, such as one whose text met a stop string."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        # Those still unborn would wait for ever for a parent that ends without its prompt.
        self._bear_siblings(request, request.sequences[0])
        for sequence in request.sequences:
            if sequence.choice == choice and sequence.status is not Status.ENDED:
                self._end(sequence)
                return True
        return False

    def schedule(self) -> StepPlan | None:
        """Plan the next step; None if there is nothing to compute now."""
        self.batch.begin_step()
        self._draft()
        self.entrance.admit_urgent()
        self.entrance.share_slots()
        self.entrance.share_memory()
        self.budget.begin_step(self._tenants())
        newcomers = self.entrance.newcomers()
        preempted_before = self.batch.num_preemptions
        rows: Rows = []
        # All that are given tokens may be preempted: others can have them then.
        while not rows and (grants := self.budget.grant(self.running, newcomers)):
            self.batch.serve(tuple(grants))
            rows = self._secure_memory(grants)
        if self.batch.num_preemptions == preempted_before:
            self.entrance.admit(rows)
        if not rows:
            return None
        self.budget.end_step(rows)
        return self._make_plan(rows)

    def commit(self, result: StepResult) -> tuple[list[SequenceUpdate], StepRecord]:
        """Take the results of the oldest step in flight: news for the clients, and its record.

        Results of sequences that have ended, or were preempted since, are dropped.
        """
        plan = self._in_flight.popleft()
        assert plan.step_id == result.step_id, "results must come back in order"
        updates: list[SequenceUpdate] = []
        slots: list[SlotRecord] = []
        for row, row_result in zip(plan.rows, result.rows, strict=True):
            sequence = self._sequences.get(row.seq_id)
            if sequence is None or sequence.epoch != row.epoch:
                continue
            slot = sequence.slot
            num_known = len(sequence.tokens)
            updates += self._commit_row(sequence, row, row_result)
            decodes = (
                row.samples
                and row.start + len(row.token_ids) >= num_known
                and num_known > sequence.num_prompt
            )
            num_decode = 1 + row.num_drafts if decodes else 0
            num_prefill = len(row.token_ids) - num_decode
            slots.append(self._recorder.slot(sequence, slot, num_prefill, num_decode))
        record = self._recorder.record(
            result, slots, self.running, self.policy.held, len(self.waiting), self.allocator
        )
        return updates, record

    # --- steps that fail --------------------------------------------------------------------

    def take_back(self) -> tuple[dict[str, dict[int, int]], bool]:
        """The results of the steps in flight will not come: whoever runs gives up its memory and
        waits to be computed again, as if it were preempted.

        Returns per request how far each of its sequences (by seq_id) would have been computed,
        those that were preempted meanwhile included; and whether others, which have ended since,
        were in these steps as well.
        """
        ends: dict[str, dict[int, int]] = {}
        others_ended = False
        for plan in self._in_flight:
            self.batch.retired += plan.ended  # execution may not have heard of it
            for row in plan.rows:
                sequence = self._sequences.get(row.seq_id)
                if sequence is None:
                    others_ended = True
                    continue
                end = row.start + len(row.token_ids) - row.num_drafts
                of_request = ends.setdefault(sequence.request.message.request_id, {})
                of_request[row.seq_id] = max(end, of_request.get(row.seq_id, 0))
        self._in_flight.clear()
        for sequence in tuple(self.running):
            self.batch.set_back(sequence)
        return ends, others_ended

    def confine(self, request_ids: Collection[str] | None) -> None:
        """From now on admit sequences of these requests only, or of all; the others that run wait.

        Not while a step is in flight.
        """
        assert not self._in_flight, "a step is in flight"
        self.entrance.confined_to = request_ids
        for sequence in tuple(self.running):
            if not self.entrance.is_open_to(sequence):
                self.batch.set_back(sequence)

    def has_computed(self, seq_id: int, num_tokens: int) -> bool:
        """Whether a sequence has ended, or that many of its tokens are computed."""
        sequence = self._sequences.get(seq_id)
        return sequence is None or sequence.num_computed >= num_tokens

    def fail(self, request_id: str, error: str) -> list[SequenceUpdate]:
        """End a request with an error; the news of it, none if it is not here (any more)."""
        request = self._requests.get(request_id)
        return [] if request is None else self._fail_request(request, error)

    # --- planning a step ------------------------------------------------------------------

    def _tenants(self) -> set[str]:
        """Of those that run or wait, but for background work."""
        running = {s.tenant for s in self.running if not s.is_background}
        return running | self.waiting.tenants(background=False)

    def _draft(self) -> None:
        if self.drafter is None:
            return
        for sequence in self.running:
            most = sequence.most_drafts
            sequence.drafts = ()
            if most > 0:
                sequence.drafts = tuple(self.drafter(sequence.tokens, most))[:most]

    def _secure_memory(self, grants: dict[Sequence, int]) -> Rows:
        rows: Rows = []
        for sequence in sorted(grants, key=lambda s: s.order):
            if sequence.status is not Status.RUNNING:
                continue  # preempted for an earlier one
            num_tokens = self.batch.row_length(sequence, grants[sequence])
            while not self.batch.extend(sequence, num_tokens):
                victim = first_to_give_way(self.running, self.running.index(sequence))
                assert victim is not sequence or len(self.running) > 1, "the oldest must fit alone"
                self.batch.preempt(victim)
                if victim is sequence:
                    break
            else:
                rows.append((sequence, num_tokens))
        return rows

    def _make_plan(self, rows: Rows) -> StepPlan:
        step_id = next(self._step_ids)
        step_rows, new, operations = [], [], self.batch.operations
        for sequence, num_tokens in rows:
            if not sequence.announced:
                new.append(sequence.sampling_state())
                sequence.announced = True
            step_rows.append(sequence.take_row(num_tokens))
        plan = StepPlan(
            step_id=step_id,
            rows=tuple(step_rows),
            new_sequences=tuple(new),
            ended=tuple(self.batch.retired),
            copies=tuple(operations.copies),
            zeroed=tuple(operations.zeroed),
            snapshots=tuple(operations.snapshots),
        )
        self.batch.retired.clear()
        self._in_flight.append(plan)
        return plan

    # --- taking results back ----------------------------------------------------------------

    def _commit_row(
        self, sequence: Sequence, row: StepRow, result: RowResult
    ) -> list[SequenceUpdate]:
        request = sequence.request
        num_rejected = sequence.take_result(row, result.token_ids)
        if result.error is not None:
            return self._fail_request(request, result.error)
        finish: FinishReason | None = None
        stop_reason: int | None = None
        num_taken = 0
        for token_id in result.token_ids:
            sequence.tokens.append(token_id)
            num_taken += 1
            finish, stop_reason = sequence.finish()
            if finish is not None:
                break
        assert num_taken or not row.samples, "a row that samples gives a token or an error"
        token_ids = result.token_ids[:num_taken]
        if num_rejected:
            sequence.num_computed = self.allocator.truncate(sequence.table, sequence.num_computed)
        elif row.num_drafts:
            self.allocator.settle(sequence.table)
        num_valid = min(sequence.num_computed, len(sequence.tokens))
        self.allocator.publish(sequence.table, sequence.tokens, num_valid)
        prompt_logprobs = sequence.take_prompt_logprobs(row.start, result.prompt_logprobs)
        if num_taken:
            self.waiting.charge(sequence, num_output=num_taken)
            if request.num_unborn:
                self._bear_siblings(request, sequence)
        update = SequenceUpdate(
            request_id=request.message.request_id,
            choice=sequence.choice,
            token_ids=token_ids,
            logprobs=result.logprobs[:num_taken],
            prompt_logprobs=prompt_logprobs,
            pooled=result.pooled,
            finish_reason=finish,
            stop_reason=stop_reason,
            num_cached_tokens=request.num_cached_tokens or 0,
            first_scheduled_s=request.first_scheduled_s,
        )
        if finish is not None:
            self._end(sequence)
        return [update] if token_ids or prompt_logprobs else []

    def _bear_siblings(self, request: Request, parent: Sequence) -> None:
        for choice in range(1, request.num_unborn + 1):
            self._enqueue(self._new_sequence(request, choice, parent))
        request.num_unborn = 0

    def _fail_request(self, request: Request, error: str) -> list[SequenceUpdate]:
        alive = [s.choice for s in request.sequences if s.status is not Status.ENDED]
        unborn = range(len(request.sequences), len(request.sequences) + request.num_unborn)
        # What led to the failure may already be in its blocks.
        self._end_request(request, forget=True)
        return [
            SequenceUpdate(
                request_id=request.message.request_id,
                choice=choice,
                finish_reason="error",
                error=error,
                num_cached_tokens=request.num_cached_tokens or 0,
            )
            for choice in [*alive, *unborn]
        ]

    # --- life and end of sequences ------------------------------------------------------------

    def _enqueue(self, sequence: Sequence, *, arrives: bool = False) -> None:
        self._sequences[sequence.seq_id] = sequence
        self.waiting.add(sequence, arrives_beside=self.running if arrives else None)

    def _new_sequence(
        self, request: Request, choice: int, parent: Sequence | None = None
    ) -> Sequence:
        seq_id = next(self._seq_ids)
        return request.new_sequence(seq_id, choice, self.max_model_len, parent, self._computed_by)

    def _end_request(self, request: Request, *, forget: bool = False) -> None:
        request.num_unborn = 0
        for sequence in request.sequences:
            if sequence.status is not Status.ENDED:
                self._end(sequence, forget=forget)
        self._let_go(request)

    def _end(self, sequence: Sequence, *, forget: bool = False) -> None:
        if sequence.status is Status.RUNNING:
            self.batch.end(sequence, forget=forget)
        else:
            self.waiting.remove(sequence)
        sequence.status = Status.ENDED
        del self._sequences[sequence.seq_id]
        if sequence.request.ended:
            self._let_go(sequence.request)

    def _let_go(self, request: Request) -> None:
        message = request.message
        if self._requests.pop(message.request_id, None) is None:
            return
        self._num_with_adapter[message.adapter] -= 1
        if not self._num_with_adapter[message.adapter]:
            del self._num_with_adapter[message.adapter]
