"""The token budget of a step: how it is shared among the sequences that run.

Background work (priority above 0) comes after all others, and is bounded: while others run, to so
few tokens that their step takes hardly longer; alone, to a step that is over soon, so that who
arrives in its middle does not wait for long. For the same reason steps are short while several
tenants use the engine: one's long prompts would make all others wait. They are four times as long
where one tenant's sequences generate beside its prompts, and whole where none does.
"""

from collections.abc import Iterable

from loire.base.config import BACKGROUND_ALONE, BESIDE_STREAMS
from loire.scheduling.fairness import RecentTenants, prefill_shares
from loire.scheduling.sequence import Sequence

Rows = list[tuple[Sequence, int]]
"""Sequences and how many tokens of each a step computes."""

STEPS_REMEMBERED = 4
"""A tenant counts as being there until so many full steps' tokens were computed without it."""


class TokenBudget:
    """max_tokens: of a step; background_tokens: those of background work beside other work."""

    def __init__(self, max_tokens: int, background_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._background_tokens = background_tokens
        self._tokens_over_soon = background_tokens * BACKGROUND_ALONE
        self._tenants = RecentTenants(STEPS_REMEMBERED * max_tokens)
        self._others_generate = False
        """Whether a sequence that is not in the background waits for its next token."""

    def begin_step(self, tenants: Iterable[str]) -> None:
        """A step is to be planned. tenants: of those that run or wait, but for background work."""
        self._tenants.see(tenants)

    def end_step(self, rows: Rows) -> None:
        """It was planned."""
        self._tenants.compute(sum(n for _, n in rows))

    def grant(
        self, running: Iterable[Sequence], newcomers: Iterable[Sequence] = ()
    ) -> dict[Sequence, int]:
        """Tokens for everyone who gets any. newcomers: for whom a tenant's share is left, too."""
        urgent: list[Sequence] = []
        background: list[Sequence] = []
        for sequence in running:
            (background if sequence.is_background else urgent).append(sequence)
        self._others_generate = any(s.num_to_compute == 1 for s in urgent)
        grants = _share(urgent, self.max_tokens, self._most_prefill, newcomers)
        if background:
            left = self.max_tokens - sum(grants.values())
            limit = self._background_limit(alone=not urgent)
            grants |= _share(background, min(left, limit), limit)
        return grants

    def left_for(self, sequence: Sequence, rows: Rows, running: Iterable[Sequence]) -> int:
        """Tokens that a sequence may still have, beside the rows that the step has already."""
        left = self.max_tokens - sum(n for _, n in rows)
        if sequence.is_background:
            taken = sum(n for s, n in rows if s.is_background)
            alone = all(other.is_background for other in running)
            left = min(left, self._background_limit(alone=alone) - taken)
        else:
            left = min(left, self._most_prefill - sum(n - 1 for _, n in rows))
        return max(left, 0)

    @property
    def _most_prefill(self) -> int:
        """Tokens of a step beside one of each sequence."""
        if self._tenants.are_several:
            return self._tokens_over_soon
        if self._others_generate:
            return min(self._tokens_over_soon * BESIDE_STREAMS, self.max_tokens)
        return self.max_tokens

    def _background_limit(self, *, alone: bool) -> int:
        return self._tokens_over_soon if alone else self._background_tokens


def _share(
    sequences: list[Sequence], budget: int, most_prefill: int, newcomers: Iterable[Sequence] = ()
) -> dict[Sequence, int]:
    """One token each; then the rest, or most_prefill, to those who have more to compute: by
    priority, shared among tenants, within a tenant in order.

    If there are fewer tokens than sequences, they take turns.
    """
    needs = {s: num_needed for s in sequences if (num_needed := s.num_to_compute) > 0}
    ready = list(needs)
    if len(ready) > budget:
        ready = sorted(ready, key=lambda s: (s.last_served, s.order))[:budget]
    grants = dict.fromkeys(ready, 1)
    left = min(budget - len(ready), most_prefill)
    hungry = sorted((s for s in ready if needs[s] > 1), key=lambda s: s.order)
    for priority in dict.fromkeys(s.priority for s in hungry):
        equals = [s for s in hungry if s.priority == priority]
        wanted: dict[str, int] = {}
        for sequence in equals:
            wanted[sequence.tenant] = wanted.get(sequence.tenant, 0) + needs[sequence] - 1
        for sequence in newcomers:
            if sequence.priority == priority:
                wanted.setdefault(sequence.tenant, sequence.num_to_compute)
        shares = prefill_shares(wanted, left)
        left -= sum(shares.values())
        for sequence in equals:
            more = min(needs[sequence] - 1, shares[sequence.tenant])
            grants[sequence] += more
            shares[sequence.tenant] -= more
    return grants
