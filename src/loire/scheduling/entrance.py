"""Who of those that wait enters the batch, and in whose place: rules 1 and 4 of the scheduler."""

from collections.abc import Callable, Collection
from itertools import islice

from loire.base.structured_outputs import StructuredOutputs
from loire.memory.allocator import Admitted, KVAllocator, Refusal
from loire.scheduling.batch import RunningBatch
from loire.scheduling.batching import BatchingPolicy
from loire.scheduling.budget import Rows, TokenBudget
from loire.scheduling.fairness import memory_surplus_of, surplus_of
from loire.scheduling.sequence import Sequence, Status
from loire.scheduling.waiting import WaitingQueue


class Entrance:
    """Between the queue and the batch."""

    def __init__(
        self,
        allocator: KVAllocator,
        policy: BatchingPolicy,
        budget: TokenBudget,
        waiting: WaitingQueue,
        batch: RunningBatch,
    ) -> None:
        self.confined_to: Collection[str] | None = None
        """If not None, only sequences of these requests enter."""
        self.form_ready: Callable[[StructuredOutputs], bool] = lambda form: True
        """Whether a sequence with such a constraint could sample at once; until then it waits,
        holding nothing and letting others pass."""
        self.adapter_ready: Callable[[str], bool] = lambda identity: True
        """The same of a sequence for the adapter of that content."""
        self._allocator = allocator
        self._policy = policy
        self._budget = budget
        self._waiting = waiting
        self._batch = batch
        self._memory_is_short = False
        """Whether the last one who might have entered found no memory."""
        self._memory_was_shared = False
        """Whether others were asked for some since."""

    @property
    def waits_for_forms(self) -> bool:
        """Whether any sequence waits for its constraint or its adapter."""
        return not all(map(self._is_prepared, self._waiting))

    def is_open_to(self, sequence: Sequence) -> bool:
        """Whether the sequence may enter at all now."""
        only = self.confined_to
        is_wanted = only is None or sequence.request.message.request_id in only
        return is_wanted and self._is_prepared(sequence)

    def admit_urgent(self) -> None:
        """Let those in who are more urgent than somebody who runs, if need be in their place."""
        if not self._waiting or not self._policy.makes_way:
            return
        running = self._batch.running
        for sequence in self._waiting.in_turn():
            while sequence.status is Status.WAITING and self.is_open_to(sequence):
                if not running or sequence.priority >= running[-1].priority:
                    return
                before = (s.num_to_compute for s in running if s.order < sequence.order)
                if sum(before) >= self._budget.max_tokens:
                    return
                has_slot = self._batch.free_slots > 0
                admission = self._try_admission(sequence) if has_slot else None
                if admission is Refusal.PREFIX_PENDING:
                    break
                if isinstance(admission, Admitted):
                    self._batch.enter(sequence, admission)
                else:
                    self._batch.preempt(running[-1])

    def share_slots(self) -> None:
        """Where there are fewer slots than sequences whose turn has come, let the others of those
        in, in the place of a tenant that has at least two more: then it still has no fewer, so that
        nobody is put out in return."""
        free_slots = self._batch.free_slots
        if not self._policy.makes_way or free_slots >= len(self._waiting):
            return
        if free_slots > 0 and self._memory_is_short:
            return
        coming: list[Sequence] = []
        """Those that find a free slot when the step's memory is given out."""
        for sequence in self._waiting.in_turn():
            if not self.is_open_to(sequence):
                continue
            if len(coming) < self._batch.free_slots:
                coming.append(sequence)
                continue
            while (surplus := surplus_of(self._batch.running, sequence, coming)) is not None:
                # Asked first: one that waits for a prefix would not use the slot.
                admission = self._try_admission(sequence)
                if admission is Refusal.PREFIX_PENDING:
                    break
                self._batch.preempt(surplus)
                if isinstance(admission, Admitted):
                    self._batch.enter(sequence, admission)
                    break
            else:
                return

    def share_memory(self) -> None:
        """Where there are slots but no memory, let the next in turn in, in the place of a tenant
        that holds more, and does so afterwards."""
        if not self._memory_is_short or self._memory_was_shared:
            return
        self._memory_was_shared = True
        if not self._policy.makes_way:
            return
        for sequence in self._waiting.in_turn():
            if self._batch.free_slots <= 0:
                return
            if self.is_open_to(sequence) and not self._enters_for_its_share(sequence):
                return

    def _enters_for_its_share(self, sequence: Sequence) -> bool:
        """Whether it entered, or waits for a prefix; False if the others hold no more than it."""
        ahead = self._budget.max_tokens
        num_needed = self._allocator.geometry.pages_for(len(sequence.tokens), ahead)
        running = self._batch.running
        while (surplus := memory_surplus_of(running, sequence, num_needed)) is not None:
            admission = self._try_admission(sequence)
            if admission is Refusal.PREFIX_PENDING:
                return True
            if isinstance(admission, Admitted):
                self._batch.enter(sequence, admission)
                return True
            self._batch.preempt(surplus)
        return False

    def newcomers(self) -> list[Sequence]:
        """Who might enter in this step: of each tenant one, as far as there are slots."""
        if self._memory_is_short or not self._waiting:
            return []
        firsts = self._waiting.first_of_each(self.is_open_to)
        return list(islice(firsts, max(self._batch.free_slots, 0)))

    def admit(self, rows: Rows) -> None:
        """Let the next ones in, adding their rows to those of the step."""
        batch = self._batch
        self._memory_is_short = self._memory_was_shared = False
        if not self._waiting:
            return
        free_slots = batch.free_slots
        for sequence in self._waiting.in_turn():
            if free_slots <= 0:
                break
            is_served = self._budget.admits(sequence, rows, batch.running)
            if not is_served and not self._policy.admits_unserved:
                break
            admission = self._try_admission(sequence) if self.is_open_to(sequence) else None
            if admission is None or admission is Refusal.PREFIX_PENDING:
                continue
            if admission is Refusal.NO_MEMORY:
                self._memory_is_short = True
                break
            assert isinstance(admission, Admitted)
            batch.enter(sequence, admission)
            budget = self._budget.left_for(sequence, rows, batch.running)
            num_tokens = batch.row_length(sequence, min(sequence.num_to_compute, budget))
            if num_tokens:
                is_there = batch.extend(sequence, num_tokens)
                assert is_there, "admission promised memory that is not there"
                rows.append((sequence, num_tokens))
            free_slots -= 1

    def _is_prepared(self, sequence: Sequence) -> bool:
        message = sequence.request.message
        form = message.params.structured_outputs
        if message.adapter and not self.adapter_ready(message.adapter):
            return False
        return form is None or self.form_ready(form)

    def _try_admission(self, sequence: Sequence) -> Admitted | Refusal:
        # A quarter of the running sequences cross into a new block within the next
        # block_size / 4 steps; leaving them that much avoids admitting what is preempted at once.
        headroom = len(self._batch.running) // 4
        parent = sequence.parent
        # A parent that was preempted may be computing its prompt once more.
        can_fork = (
            parent is not None
            and parent.status is Status.RUNNING
            and parent.num_computed >= sequence.num_prompt - 1
            and sequence.epoch == 0
        )
        tokens, most = sequence.tokens, sequence.max_tokens
        if parent is not None and can_fork:
            num_shared = sequence.num_prompt - 1
            return self._allocator.fork(
                parent.table, sequence.table, num_shared, tokens, most, headroom
            )
        return self._allocator.admit(sequence.table, tokens, most, headroom)
