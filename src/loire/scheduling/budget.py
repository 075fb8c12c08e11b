"""The token budget of a step: how it is shared among the sequences that run.

Background work (priority above 0) comes after all others, and is bounded: while others run, to so
few tokens that their step takes hardly longer; alone, to a step that is over soon, so that who
arrives in its middle does not wait for long.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from loire.base.config import BACKGROUND_ALONE
from loire.scheduling.sequence import Sequence

Rows = list[tuple[Sequence, int]]
"""Sequences and how many tokens of each a step computes."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """max_tokens: of a step; background_tokens: those of background work beside other work."""

    max_tokens: int
    background_tokens: int

    def grant(self, running: Iterable[Sequence]) -> dict[Sequence, int]:
        """Tokens for everyone who gets any."""
        urgent: list[Sequence] = []
        background: list[Sequence] = []
        for sequence in running:
            (background if sequence.is_background else urgent).append(sequence)
        grants = _share(urgent, self.max_tokens)
        if background:
            left = self.max_tokens - sum(grants.values())
            limit = self._background_limit(alone=not urgent)
            grants |= _share(background, min(left, limit))
        return grants

    def left_for(self, sequence: Sequence, rows: Rows, running: Iterable[Sequence]) -> int:
        """Tokens that a sequence may still have, beside the rows that the step has already."""
        left = self.max_tokens - sum(n for _, n in rows)
        if sequence.is_background:
            taken = sum(n for s, n in rows if s.is_background)
            alone = all(other.is_background for other in running)
            left = min(left, self._background_limit(alone=alone) - taken)
        return max(left, 0)

    def _background_limit(self, *, alone: bool) -> int:
        return self.background_tokens * (BACKGROUND_ALONE if alone else 1)


def _share(sequences: list[Sequence], budget: int) -> dict[Sequence, int]:
    """One token each; then the rest in order, to those who have more to compute.

    If there are fewer tokens than sequences, they take turns.
    """
    ready = [sequence for sequence in sequences if sequence.num_to_compute > 0]
    if len(ready) > budget:
        ready = sorted(ready, key=lambda s: (s.last_served, s.order))[:budget]
    grants = dict.fromkeys(ready, 1)
    left = budget - len(ready)
    for sequence in sorted(ready, key=lambda s: s.order) if left else ():
        more = min(sequence.num_to_compute - 1, left)
        grants[sequence] += more
        left -= more
    return grants
