"""The batch: the sequences that hold memory and a slot, and what a step does with their pages."""

from bisect import insort
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Sequences
from heapq import heappop, heappush
from itertools import count

from loire.memory.allocator import Admitted, BlockCopy, KVAllocator, PageOperations
from loire.scheduling.batching import BatchingPolicy
from loire.scheduling.recording import StepRecorder
from loire.scheduling.sequence import Sequence, Status
from loire.scheduling.waiting import WaitingQueue


class RunningBatch:
    """Whoever enters it leaves it by its end, or by being preempted, and then waits again."""

    def __init__(
        self,
        allocator: KVAllocator,
        policy: BatchingPolicy,
        waiting: WaitingQueue,
        recorder: StepRecorder,
        clock: Callable[[], float],
    ) -> None:
        self.running: list[Sequence] = []
        """Those with tokens to compute, in order."""
        self.operations = PageOperations()
        """Of the step that is being planned."""
        self.retired: list[int] = []
        """Those whose sampling state execution can drop, and has not been told to."""
        self.num_preemptions = 0
        self._allocator = allocator
        self._policy = policy
        self._waiting = waiting
        self._recorder = recorder
        self._clock = clock
        self._turns = count()
        self._free_slots: list[int] = []
        self._num_slots = 0

    @property
    def free_slots(self) -> int:
        """How many waiting sequences may enter now."""
        return self._policy.free_slots(len(self.running))

    def begin_step(self) -> None:
        """A step is to be planned."""
        self.operations = PageOperations()
        for sequence in self._policy.let_go(len(self.running)):
            self._leave(sequence)

    def serve(self, sequences: Sequences[Sequence]) -> None:
        """These get tokens of the step, in this order."""
        for sequence in sequences:
            sequence.last_served = next(self._turns)

    def enter(self, sequence: Sequence, admission: Admitted) -> None:
        """One that waited has been given memory."""
        self._waiting.remove(sequence)
        if sequence.turn is None:
            sequence.turn = next(self._turns)
            num_input = len(sequence.tokens) - admission.num_cached_tokens
            self._waiting.charge(sequence, num_input=num_input)
        sequence.status = Status.RUNNING
        sequence.num_computed = admission.num_cached_tokens
        sequence.slot = self._take_slot()
        sequence.last_served = next(self._turns)
        insort(self.running, sequence, key=lambda s: s.order)
        request = sequence.request
        if request.num_cached_tokens is None:
            request.num_cached_tokens = admission.num_cached_tokens
            request.first_scheduled_s = self._clock()
            self._recorder.num_hit_tokens += admission.num_cached_tokens

    def row_length(self, sequence: Sequence, num_tokens: int) -> int:
        """As many of the tokens as may be computed in one step."""
        start = sequence.start
        return self._allocator.row_end(sequence.table, start, start + num_tokens) - start

    def extend(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make memory for its row ready, in this step; False if there is none."""
        start, end = sequence.start, sequence.start + num_tokens
        num_drafts = sequence.num_drafts_until(end)
        operations = self._allocator.extend(sequence.table, start, end, num_drafts)
        if operations is None:
            return False
        self.operations.zeroed += operations.zeroed
        self.operations.snapshots += operations.snapshots
        self._add_copies(operations.copies)
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Take everything back from a sequence, for another."""
        self.num_preemptions += 1
        self._recorder.num_preemptions += 1
        self.set_back(sequence)

    def set_back(self, sequence: Sequence) -> None:
        """A sequence gives everything back and waits to be computed again."""
        self.running.remove(sequence)
        self._leave(sequence)
        sequence.set_back()
        self._waiting.add(sequence)

    def end(self, sequence: Sequence, *, forget: bool = False) -> None:
        """A sequence that runs has ended. forget: nobody may find what it computed."""
        self.running.remove(sequence)
        if not self._policy.keeps(sequence):
            self._leave(sequence, forget=forget)

    def _add_copies(self, copies: Iterable[BlockCopy]) -> None:
        """Add a sequence's copies to the step. All are read before any is written, so a copy of
        a copy (a sibling that forks a parent whose block was copied just now) is taken from the
        original. The sequence's own among them, which may even swap two pages, are no such.
        """
        originals = {target: source for source, target in self.operations.copies}
        self.operations.copies += [
            (originals.get(source, source), target) for source, target in copies
        ]

    def _leave(self, sequence: Sequence, *, forget: bool = False) -> None:
        self._allocator.release(sequence.table, forget=forget)
        heappush(self._free_slots, sequence.slot)
        sequence.slot = -1
        if sequence.announced:
            self.retired.append(sequence.seq_id)
            sequence.announced = False

    def _take_slot(self) -> int:
        if self._free_slots:
            return heappop(self._free_slots)
        self._num_slots += 1
        return self._num_slots - 1
