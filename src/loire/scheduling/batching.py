"""Batching policies: who may enter the batch, and when its members leave.

A policy knows neither memory nor tokens. The historical systems are combinations of a policy and
an allocator (docs/architecture.md).
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from loire.scheduling.sequence import Sequence


class BatchingPolicy(Protocol):
    """Asked once per step, before sequences are admitted; belongs to one scheduler."""

    @property
    def name(self) -> str:
        """How it is called."""
        ...

    @property
    def makes_way(self) -> bool:
        """Whether one that runs may be preempted because another one's turn has come."""
        ...

    @property
    def admits_unserved(self) -> bool:
        """Whether sequences enter even if the token budget lets them compute only later."""
        ...

    @property
    def held(self) -> Collection[Sequence]:
        """Ended sequences that it keeps in the batch, with their slots and memory."""
        ...

    def free_slots(self, num_running: int) -> int:
        """How many waiting sequences may enter now, while so many have tokens to compute."""
        ...

    def keeps(self, sequence: Sequence) -> bool:
        """Whether one that has ended is held from now on."""
        ...

    def let_go(self, num_running: int) -> Collection[Sequence]:
        """Those that are held no more."""
        ...


class _LeaveAtOnce:
    """Nobody is held."""

    __slots__ = ()

    makes_way = True
    admits_unserved = False
    held: Collection[Sequence] = ()

    def keeps(self, sequence: Sequence) -> bool:
        """No."""
        return False

    def let_go(self, num_running: int) -> Collection[Sequence]:
        """Nobody."""
        return ()


@dataclass(frozen=True, slots=True)
class Continuous(_LeaveAtOnce):
    """Sequences enter and leave at any step (Yu et al. 2022, Orca: iteration-level scheduling)."""

    max_num_seqs: int
    name: str = "continuous"

    def free_slots(self, num_running: int) -> int:
        """As many as the batch has room for."""
        return self.max_num_seqs - num_running


@dataclass(frozen=True, slots=True)
class Sequential(_LeaveAtOnce):
    """One sequence at a time: no batching."""

    name: str = "sequential"

    def free_slots(self, num_running: int) -> int:
        """One, when nothing runs."""
        return 0 if num_running else 1


@dataclass(slots=True)
class Static:
    """A batch is formed when the one before it has ended, and ends with its longest member.

    Finished members keep slot and memory until then; later arrivals wait. max_num_seqs and the
    memory bound the batch.
    """

    max_num_seqs: int
    name: str = "static"
    makes_way: bool = False
    admits_unserved: bool = True
    held: list[Sequence] = field(default_factory=list)

    def free_slots(self, num_running: int) -> int:
        """A whole batch when the one before it has ended, else none."""
        return 0 if num_running or self.held else self.max_num_seqs

    def keeps(self, sequence: Sequence) -> bool:
        """Until all have ended."""
        self.held.append(sequence)
        return True

    def let_go(self, num_running: int) -> list[Sequence]:
        """All, when all have ended."""
        if num_running:
            return []
        gone, self.held = self.held, []
        return gone
