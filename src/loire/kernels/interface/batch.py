"""What a step's operations get beside their tensors: the batch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A step's tokens and rows as the host knows them: what Transfers.upload() takes."""

    token_ids: NDArray[np.int64]
    """[T]; anything where a token is pending."""
    pending: NDArray[np.int64] | None
    """[T]: the place in `latest` of the token that stands there, or -1; None: none is pending."""
    positions: NDArray[np.int64]
    """[T], and what follows as in FlatBatch."""
    slots: NDArray[np.int64]
    """[T]."""
    block_tables: NDArray[np.int32]
    """[R, M]."""
    query_starts: NDArray[np.int32]
    """[R + 1]."""
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    adapters: NDArray[np.int32] | None = None
    """[T]: see AdapterRows; None: no token has one."""


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Which adapter each token of a batch has."""

    numbers: Tensor
    """int32 [T]: what LinearKernels.adapt() was given, or -1 for none."""


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """The rows of a step, flattened. Row r owns tokens query_starts[r] up to query_starts[r + 1].

    The token at index i of row r stands at position context_lens[r] - query_lens[r] + i and sees
    all keys up to itself; the keys of this step's own tokens are in the cache before attend().
    """

    positions: Tensor
    """int64 [T]: position of each token in its sequence."""
    slots: Tensor
    """int64 [T]: where its key and value go: block * S + offset."""
    block_tables: Tensor
    """int32 [R, M]: block ids; entries past a row's context are 0 and must not be read."""
    query_starts: Tensor
    """int32 [R + 1]."""
    context_lens: Tensor
    """int32 [R]: keys that the row's last token sees, itself included."""
    host_query_lens: tuple[int, ...]
    """Tokens per row, on the host."""
    host_context_lens: tuple[int, ...]
    """context_lens, on the host."""
    adapters: AdapterRows | None = None
    """None: no token has one."""
