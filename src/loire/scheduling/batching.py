"""Batching policies: who may enter the batch, and when its members leave.

A policy knows numbers, no memory and no tokens. The historical systems are combinations of a
policy and an allocator (docs/architecture.md).
"""

from dataclasses import dataclass
from typing import Protocol


class BatchingPolicy(Protocol):
    """Asked once per step, before sequences are admitted."""

    @property
    def name(self) -> str:
        """How it is called."""
        ...

    @property
    def whole_batches(self) -> bool:
        """Whether sequences enter together and leave together: all that fit are admitted at once,
        even if the token budget lets some of them compute only later, and one that has ended
        keeps its slot and memory until the batch has."""
        ...

    def free_slots(self, num_running: int, num_held: int) -> int:
        """How many waiting sequences may enter now.

        num_running have tokens to compute; num_held have ended and are still held.
        """
        ...


@dataclass(frozen=True, slots=True)
class Continuous:
    """Sequences enter and leave at any step (Yu et al. 2022, Orca: iteration-level scheduling)."""

    max_num_seqs: int
    name: str = "continuous"
    whole_batches: bool = False

    def free_slots(self, num_running: int, num_held: int) -> int:
        """As many as the batch has room for."""
        return self.max_num_seqs - num_running - num_held


@dataclass(frozen=True, slots=True)
class Sequential:
    """One sequence at a time: no batching."""

    name: str = "sequential"
    whole_batches: bool = False

    def free_slots(self, num_running: int, num_held: int) -> int:
        """One, when nothing runs."""
        return 0 if num_running or num_held else 1


@dataclass(frozen=True, slots=True)
class Static:
    """A batch is formed when the one before it has ended, and ends with its longest member.

    Finished members keep slot and memory until then; later arrivals wait. max_num_seqs and the
    memory bound the batch.
    """

    max_num_seqs: int
    name: str = "static"
    whole_batches: bool = True

    def free_slots(self, num_running: int, num_held: int) -> int:
        """A whole batch when the one before it has ended, else none."""
        return 0 if num_running or num_held else self.max_num_seqs
