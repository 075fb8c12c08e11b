"""The last hidden states of a step, and the way from some of them to logits."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from torch import Tensor

from loire.execution.forward import Logits
from loire.execution.inputs import one_by_one
from loire.kernels.interface import HostBatch


class HiddenStates:
    """Those of the last tokens of each row."""

    def __init__(
        self,
        logits: Logits,
        values: Tensor,
        batch: HostBatch,
        counts: Sequence[int],
        latest: Tensor,
    ) -> None:
        """values: [W, E], of the tokens of batch. counts: tokens of each row of the step, some
        perhaps 0. latest: as Transfers.upload() takes it."""
        self.ends = list(accumulate(counts))
        """Behind each row's last one."""
        self._logits = logits
        self._values = values
        self._batch = batch
        self._counts = counts
        self._latest = latest

    def of_row(self, index: int) -> Tensor:
        """[count, E]."""
        end = self.ends[index]
        return self._values[end - self._counts[index] : end]

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """float32 [L, V] behind these tokens, ascending indices of hidden states."""
        batch = None
        if self._batch.adapters is not None:
            alone = one_by_one(self._batch, np.array(tokens, dtype=np.int64))
            _, batch = self._logits.decoder.backend.transfers.upload(alone, self._latest)
        return self._logits(self._values, tokens, batch)
