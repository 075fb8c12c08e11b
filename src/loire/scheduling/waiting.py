"""The queue: by priority, then by fair turns of the tenants, within a tenant in order."""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from loire.scheduling.fairness import VirtualCounters
from loire.scheduling.sequence import Sequence


class WaitingQueue:
    """Sequences that wait to run."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, list[Sequence]]] = {}
        """Per priority and tenant, in order; none is empty."""
        # Background work takes what is idle: it is no argument against a tenant's other requests.
        self._counters = {False: VirtualCounters(), True: VirtualCounters()}
        self._num_sequences = 0

    def __len__(self) -> int:
        return self._num_sequences

    def __iter__(self) -> Iterator[Sequence]:
        for priority in sorted(self._lines):
            for line in self._lines[priority].values():
                yield from line

    def add(self, sequence: Sequence, *, arrives_beside: Iterable[Sequence] | None = None) -> None:
        """Put a sequence in.

        arrives_beside: those that run, if it is new, and not preempted or born of another.
        """
        if arrives_beside is not None:
            background = sequence.is_background
            waiting = self.tenants(background=background)
            running = {s.tenant for s in arrives_beside if s.is_background is background}
            if sequence.tenant not in waiting:
                others = waiting or running - {sequence.tenant}
                self._counters[background].comes(sequence.tenant, others)
        lines = self._lines.setdefault(sequence.priority, {})
        insort(lines.setdefault(sequence.tenant, []), sequence, key=lambda s: s.order)
        self._num_sequences += 1

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out."""
        lines = self._lines[sequence.priority]
        line = lines[sequence.tenant]
        line.remove(sequence)
        self._num_sequences -= 1
        if not line:
            del lines[sequence.tenant]
            if not lines:
                del self._lines[sequence.priority]
            if sequence.tenant not in self.tenants(background=sequence.is_background):
                self._counters[sequence.is_background].leaves(sequence.tenant)

    def charge(self, sequence: Sequence, *, num_input: int = 0, num_output: int = 0) -> None:
        """Tokens were computed of a sequence, for the first time."""
        counters = self._counters[sequence.is_background]
        counters.charge(sequence.tenant, num_input=num_input, num_output=num_output)

    def tenants(self, *, background: bool) -> set[str]:
        """Those that have sequences in line, for background work or for other."""
        return {
            tenant
            for priority, lines in self._lines.items()
            if (priority > 0) is background
            for tenant in lines
        }

    def first_of_each(self, may_enter: Callable[[Sequence], bool]) -> Iterator[Sequence]:
        """The first in each line who may; background work left out."""
        for priority in sorted(p for p in self._lines if p <= 0):
            for line in self._lines[priority].values():
                yield from islice(filter(may_enter, line), 1)

    def in_turn(self) -> Iterator[Sequence]:
        """Each sequence when its turn comes, by what the tenants have been served by then.

        Between two of them, sequences may be removed, added and charged; those added to a priority
        that has had its turn are not given.
        """
        for priority in sorted(self._lines):
            passed: dict[str, int] = {}
            while heads := self._heads(priority, passed):
                # Among equals the one who asks for less: a flood can spare the turn.
                sequence = min(heads, key=lambda s: (self._served(s), self._length(s), s.order))
                yield sequence
                index = passed.get(sequence.tenant, 0)
                line = self._lines.get(priority, {}).get(sequence.tenant, [])
                if index < len(line) and line[index] is sequence:
                    passed[sequence.tenant] = index + 1

    def _heads(self, priority: int, passed: dict[str, int]) -> list[Sequence]:
        """The next sequence of each tenant. passed: how many of its line were given and stayed."""
        lines = self._lines.get(priority, {})
        return [
            line[passed.get(tenant, 0)]
            for tenant, line in lines.items()
            if passed.get(tenant, 0) < len(line)
        ]

    def _served(self, sequence: Sequence) -> int:
        return self._counters[sequence.is_background].served(sequence.tenant)

    def _length(self, sequence: Sequence) -> int:
        """Of the line that a sequence stands in."""
        return len(self._lines[sequence.priority][sequence.tenant])
