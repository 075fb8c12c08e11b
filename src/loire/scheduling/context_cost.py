"""What a token costs behind a context: attention reads all of it, so that a token at the end of a
long prompt takes several times as long as one at its beginning.

Counted, not timed, so that runs can be repeated.
"""

from dataclasses import dataclass

from loire.scheduling.sequence import Sequence

MOST = 8
"""Times as much as at the beginning that a token counts at most: a step of too few tokens reads
weights and contexts for little."""


@dataclass(frozen=True, slots=True)
class ContextCost:
    """In tokens at the beginning of a prompt. doubling: tokens of context behind which one costs
    twice as much; None: all cost the same."""

    doubling: int | None = None

    def of(self, sequence: Sequence, num_tokens: int) -> int:
        """Of the next tokens of a sequence."""
        if self.doubling is None:
            return num_tokens
        more = num_tokens * sequence.start // self.doubling
        return num_tokens + min(more, num_tokens * (MOST - 1))

    def affordable(self, sequence: Sequence, cost: int) -> int:
        """As many of the next tokens of a sequence as cost no more."""
        if self.doubling is None:
            return cost
        return max(cost * self.doubling // (self.doubling + sequence.start), cost // MOST)


EQUAL = ContextCost()
"""Where no step is bounded but by memory."""
