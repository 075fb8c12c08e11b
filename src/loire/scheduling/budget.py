"""The token budget of a step: how it is shared among the sequences that run.

Background work (priority above 0) comes after all others, and is bounded: while others run, to so
few tokens that their step takes hardly longer; alone, to a step that is over soon, so that who
arrives in its middle does not wait for long. For the same reason steps are short while several
tenants use the engine: one's long prompts would make all others wait. They are four times as long
where one tenant's sequences generate beside its prompts, and whole where none does. Who waits for
its first token does not wait for the shares of others: a prompt that can be finished is. Tokens
behind a long context count as several, as their step takes longer (loire.scheduling.context_cost).
"""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from loire.base.config import BACKGROUND_ALONE, BESIDE_STREAMS
from loire.scheduling.context_cost import EQUAL, ContextCost
from loire.scheduling.fairness import RecentTenants, prefill_shares
from loire.scheduling.sequence import Sequence

Rows = list[tuple[Sequence, int]]
"""Sequences and how many tokens of each a step computes."""

STEPS_REMEMBERED = 4
"""A tenant counts as being there until so many full steps' tokens were computed without it."""

WITH_FIRST_TOKENS = 2
"""So many times as many tokens has a step that is over soon for the ends of prompts of tenants that
generate nothing yet."""


class TokenBudget:
    """max_tokens: of a step; background_tokens: those of background work beside other work."""

    def __init__(
        self, max_tokens: int, background_tokens: int, context_cost: ContextCost = EQUAL
    ) -> None:
        self.max_tokens = max_tokens
        self._context_cost = context_cost
        self._background_tokens = background_tokens
        self._tokens_over_soon = background_tokens * BACKGROUND_ALONE
        self._tenants = RecentTenants(STEPS_REMEMBERED * max_tokens)
        self._others_generate = False
        """Whether a sequence that is not in the background waits for its next token."""
        self._urgent: Collection[Sequence] = ()
        """Those that run, in the step that is being planned."""

    def begin_step(self, tenants: Iterable[str]) -> None:
        """A step is to be planned. tenants: of those that run or wait, but for background work."""
        self._tenants.see(tenants)

    def end_step(self, rows: Rows) -> None:
        """It was planned."""
        self._tenants.compute(sum(n for _, n in rows))
        self._urgent = ()

    def grant(
        self, running: Iterable[Sequence], newcomers: Iterable[Sequence] = ()
    ) -> dict[Sequence, int]:
        """Tokens for everyone who gets any. newcomers: for whom a tenant's share is left, too."""
        urgent: list[Sequence] = []
        background: list[Sequence] = []
        for sequence in running:
            (background if sequence.is_background else urgent).append(sequence)
        self._others_generate = any(s.num_to_compute == 1 for s in urgent)
        self._urgent = urgent
        most = _Most(self.max_tokens, self._most_prefill, self._most_for_ends)
        grants = _share(urgent, most, self._cost, newcomers, self._generates)
        if background:
            left = self.max_tokens - sum(grants.values())
            limit = self._background_limit(alone=not urgent)
            grants |= _share(background, _Most(min(left, limit), limit, limit), EQUAL)
        return grants

    def admits(self, sequence: Sequence, rows: Rows, running: Collection[Sequence]) -> bool:
        """Whether a sequence may enter beside the rows that the step has already.

        The first of a tenant may though it turns out to need more than is left: how much of its
        prompt is in the cache is known when it is there.
        """
        if self.left_for(sequence, rows, running) > 0:
            return True
        is_first = all(sequence.tenant != other.tenant for other in running)
        left = min(self._most_for_ends, self.max_tokens - len(rows)) - self._prefill_cost(rows)
        return is_first and left > 0 and not sequence.is_background

    def left_for(self, sequence: Sequence, rows: Rows, running: Iterable[Sequence]) -> int:
        """Tokens that a sequence may still have, beside the rows that the step has already."""
        left = self.max_tokens - sum(n for _, n in rows)
        if sequence.is_background:
            taken = sum(n for s, n in rows if s.is_background)
            alone = all(other.is_background for other in running)
            left = min(left, self._background_limit(alone=alone) - taken)
        else:
            taken, needed = self._prefill_cost(rows), sequence.num_to_compute
            ends = taken + self._cost.of(sequence, needed) <= self._most_for_ends
            if ends and not self._generates(sequence.tenant):
                return min(left, needed)
            left = min(left, self._cost.affordable(sequence, self._most_prefill - taken))
        return max(left, 0)

    def _generates(self, tenant: str) -> bool:
        """Whether a sequence of a tenant that runs has tokens already."""
        return any(s.has_generated for s in self._urgent if s.tenant == tenant)

    def _prefill_cost(self, rows: Rows) -> int:
        """Of the tokens beside one of each row."""
        return sum(self._cost.of(sequence, num_tokens - 1) for sequence, num_tokens in rows)

    @property
    def _cost(self) -> ContextCost:
        return self._context_cost if self._most_prefill < self.max_tokens else EQUAL

    @property
    def _most_for_ends(self) -> int:
        """The same, where the prompts of tenants that generate nothing yet end with it."""
        if self._tenants.are_several:
            return min(self._tokens_over_soon * WITH_FIRST_TOKENS, self.max_tokens)
        return self._most_prefill

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


class _Most(NamedTuple):
    """Of a step: tokens in all; the cost of prompts, and of prompts if first tokens follow."""

    tokens: int
    prefill: int
    for_ends: int


def _share(
    sequences: list[Sequence],
    most: _Most,
    cost: ContextCost,
    newcomers: Iterable[Sequence] = (),
    generates: Callable[[str], bool] = lambda tenant: True,
) -> dict[Sequence, int]:
    """One token each; then the rest, or most.prefill, to those who have more to compute: by
    priority, shared among tenants, within a tenant in order. Then up to most.for_ends to tenants
    that generate nothing yet and want no more than that.

    If there are fewer tokens than sequences, they take turns.
    """
    needs = {s: num_needed for s in sequences if (num_needed := s.num_to_compute) > 0}
    ready = list(needs)
    if len(ready) > most.tokens:
        ready = sorted(ready, key=lambda s: (s.last_served, s.order))[: most.tokens]
    grants = dict.fromkeys(ready, 1)
    left = min(most.tokens - len(ready), most.prefill)
    left_for_ends = min(most.tokens - len(ready), most.for_ends)
    hungry = sorted((s for s in ready if needs[s] > 1), key=lambda s: s.order)
    for priority in dict.fromkeys(s.priority for s in hungry):
        equals = [s for s in hungry if s.priority == priority]
        wanted: dict[str, int] = {}
        for sequence in equals:
            needed = cost.of(sequence, needs[sequence] - 1)
            wanted[sequence.tenant] = wanted.get(sequence.tenant, 0) + needed
        for sequence in newcomers:
            if sequence.priority == priority:
                needed = cost.of(sequence, sequence.num_to_compute)
                wanted.setdefault(sequence.tenant, needed)
        shares = prefill_shares(wanted, left)
        left_for_ends -= sum(shares.values())
        waits = [tenant for tenant in wanted if not generates(tenant)]
        for tenant in sorted(waits, key=wanted.__getitem__):
            more = wanted[tenant] - shares[tenant]
            if more <= left_for_ends:
                shares[tenant] += more
                left_for_ends -= more
        left = max(left - sum(shares.values()), 0)
        for sequence in equals:
            share = shares[sequence.tenant]
            more = min(needs[sequence] - 1, cost.affordable(sequence, share))
            grants[sequence] += more
            shares[sequence.tenant] -= min(cost.of(sequence, more), share)
    return grants
