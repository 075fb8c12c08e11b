"""Tokens that a request lets come: those it names, but none that would complete a bad word."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loire.base.sampling import SamplingParams

Bits = NDArray[np.int32]


class TokenLimits:
    """The limits of one sequence, which has written output_token_ids already."""

    def __init__(
        self, params: SamplingParams, vocab_size: int, output_token_ids: Sequence[int]
    ) -> None:
        self._bad = params.bad_token_ids
        self._longest = max(map(len, self._bad), default=0)
        self._written = list(output_token_ids)
        self._allowed = np.full(-(-vocab_size // 32), -1, np.int32)
        if params.allowed_token_ids is not None:
            chosen = np.zeros(len(self._allowed) * 32, np.uint8)
            chosen[list(params.allowed_token_ids)] = 1
            self._allowed = np.packbits(chosen, bitorder="little").view(np.int32)

    @property
    def looks_back(self) -> bool:
        """Whether what may come depends on what was written."""
        return self._longest > 1

    def record(self, token_id: int) -> None:
        """A token was written."""
        if self.looks_back:
            self._written.append(token_id)
            del self._written[: -self._longest]

    def bits(self) -> Bits:
        """int32 [words]: a bit for each token that may come."""
        ending = [ids[-1] for ids in self._bad if self._stands_before(ids[:-1])]
        if not ending:
            return self._allowed
        bits: Bits = self._allowed.copy()
        words = bits.view(np.uint32)
        for token_id in ending:
            words[token_id // 32] &= ~np.uint32(1 << token_id % 32)
        return bits

    def _stands_before(self, token_ids: Sequence[int]) -> bool:
        """Whether the text so far ends with these."""
        number = len(token_ids)
        return number == 0 or self._written[-number:] == list(token_ids)
