"""The newest sampled token of each sequence in the batch, kept where the model computes.

A step may be planned before the one before it has ended: its rows then take their last token from
here, and the host need not have seen it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FEWEST_PLACES = 64


class LatestTokens:
    """A place for each sequence; their number grows as needed."""

    def __init__(self, device: torch.device, *, is_read: bool = True) -> None:
        """is_read: whether steps are planned ahead at all; if not, nothing need be put."""
        self.is_read = is_read
        self.tokens = torch.zeros(FEWEST_PLACES, dtype=torch.int64, device=device)
        """int64 [places]."""
        self._places: dict[int, int] = {}
        self._free = list(range(FEWEST_PLACES))

    def place(self, seq_id: int) -> int:
        """Where the sequence's token is, from now on."""
        place = self._places.get(seq_id)
        if place is None:
            if not self._free:
                count = len(self.tokens)
                self.tokens = torch.cat([self.tokens, torch.zeros_like(self.tokens)])
                self._free += range(count, 2 * count)
            place = self._places[seq_id] = self._free.pop()
        return place

    def put(self, seq_ids: Sequence[int], tokens: Tensor) -> None:
        """Keep tokens (int64 [L]) of these sequences."""
        places = [self.place(seq_id) for seq_id in seq_ids]
        self.tokens[torch.tensor(places, device=self.tokens.device)] = tokens

    def drop(self, seq_id: int) -> None:
        """The sequence leaves the batch, if it was in it."""
        place = self._places.pop(seq_id, None)
        if place is not None:
            self._free.append(place)
