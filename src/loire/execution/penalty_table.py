"""How often tokens came, of the sequences whose parameters penalise that."""

from collections.abc import Sequence

import torch
from torch import Tensor

FEWEST_LINES = 4


class PenaltyTable:
    """Lines of counts, one for each sequence that has asked for one; grows with their number."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        """int32 [P, V]: occurrences in the output."""
        self.seen = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)
        """bool [P, V]: occurs in prompt or output."""
        self._free: list[int] = []

    def take(self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> int:
        """A line that counts these."""
        if not self._free:
            self._grow()
        place = self._free.pop()
        device = self.counts.device
        outputs = torch.tensor(output_token_ids, dtype=torch.int64, device=device)
        prompt = torch.tensor(prompt_token_ids, dtype=torch.int64, device=device)
        self.counts[place] = torch.bincount(outputs, minlength=self.counts.shape[1])
        torch.gt(self.counts[place], 0, out=self.seen[place])
        self.seen[place, prompt] = True
        return place

    def give_back(self, place: int) -> None:
        """Nobody needs the line any more."""
        self._free.append(place)

    def _grow(self) -> None:
        before = len(self.counts)
        more = max(before, FEWEST_LINES)
        self.counts = _longer(self.counts, more)
        self.seen = _longer(self.seen, more)
        self._free += range(before, before + more)


def _longer(lines: Tensor, more: int) -> Tensor:
    return torch.cat([lines, lines.new_zeros((more, lines.shape[1]))])
