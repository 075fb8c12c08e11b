"""Several tokens per step: who guesses what comes next.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding": guesses are
computed in one step with the newest token, and those stand that the model would have given itself.
"""

from collections.abc import Sequence
from typing import Protocol


class Drafter(Protocol):
    """Guesses tokens; a pure function of those before them."""

    def __call__(self, token_ids: Sequence[int], most: int) -> Sequence[int]:
        """Up to so many tokens that may follow the known token_ids of a sequence."""
        ...
