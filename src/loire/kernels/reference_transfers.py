"""Between the host and a device, by torch's own copies: the definition."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loire.kernels.interface import AdapterRows, FlatBatch, HostBatch


def _copier(device: torch.device) -> Callable[[NDArray[np.generic]], Tensor]:
    return lambda values: torch.from_numpy(values).to(device)


class ReferenceTransfers:
    """See kernels.interface.Transfers. Where the host computes, nothing is copied."""

    def upload(self, host: HostBatch, latest: Tensor) -> tuple[Tensor, FlatBatch]:
        """Token ids [T] and the batch, where latest is."""
        there = torch.from_numpy if latest.is_cpu else _copier(latest.device)
        token_ids = there(host.token_ids)
        if host.pending is not None:
            pending = there(host.pending)
            token_ids = torch.where(pending < 0, token_ids, latest[pending.clamp_min(0)])
        return token_ids, FlatBatch(
            positions=there(host.positions),
            slots=there(host.slots),
            block_tables=there(host.block_tables),
            query_starts=there(host.query_starts),
            context_lens=there(np.array(host.context_lens, dtype=np.int32)),
            host_query_lens=host.query_lens,
            host_context_lens=host.context_lens,
            adapters=None if host.adapters is None else AdapterRows(there(host.adapters)),
        )

    def fetch(self, *results: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """At once: a copy waits for what is computed."""
        fetched = tuple([result if result.is_cpu else result.cpu() for result in results])
        return lambda: fetched
