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
    def holds_finished(self) -> bool:
        """Whether a sequence that has ended keeps its slot and memory until the batch ends."""
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
    holds_finished: bool = False

    def free_slots(self, num_running: int, num_held: int) -> int:
        """As many as the batch has room for."""
        return self.max_num_seqs - num_running - num_held
