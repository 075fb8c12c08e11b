"""From a StepPlan to the tensors of a flat batch."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loire.base.step import PENDING_TOKEN, StepPlan, StepRow
from loire.kernels.interface import AdapterRows, Backend, FlatBatch, Wanted


def flat_token_ids(
    rows: Sequence[StepRow], last_sampled: Callable[[int], int]
) -> NDArray[np.int64]:
    """The rows' tokens, int64 [T]; pending ones are those that the step before sampled."""
    count = sum(len(row.token_ids) for row in rows)
    flat = chain.from_iterable(row.token_ids for row in rows)
    tokens = np.fromiter(flat, dtype=np.int64, count=count)
    end = 0
    for row in rows:
        end += len(row.token_ids)
        if row.token_ids[-1] == PENDING_TOKEN:
            tokens[end - 1] = last_sampled(row.seq_id)
    return tokens


def flat_batch(
    plan: StepPlan, block_tables: NDArray[np.int32], block_size: int, device: torch.device
) -> FlatBatch:
    """Positions, slots and block tables of all rows, one after another without padding.

    block_tables: int32 [R, M], in the order of the rows.
    """
    query_lens = tuple(len(row.token_ids) for row in plan.rows)
    lens = np.array(query_lens, dtype=np.int64)
    starts = np.array([row.start for row in plan.rows], dtype=np.int64)
    ends = np.cumsum(lens)
    rows = np.repeat(np.arange(len(lens)), lens)
    positions = np.arange(ends[-1]) + np.repeat(starts - (ends - lens), lens)
    blocks, offsets = np.divmod(positions, block_size)
    context_lens = starts + lens
    return FlatBatch(
        positions=torch.from_numpy(positions).to(device),
        slots=torch.from_numpy(block_tables[rows, blocks] * block_size + offsets).to(device),
        block_tables=torch.from_numpy(block_tables).to(device),
        query_starts=_starts(ends).to(device),
        context_lens=torch.from_numpy(context_lens.astype(np.int32)).to(device),
        host_query_lens=query_lens,
        host_context_lens=tuple(context_lens.tolist()),
    )


def wanted_tokens(
    batch: FlatBatch, counts: Sequence[int], backend: Backend, block_size: int
) -> Wanted:
    """The last tokens of each row of batch, counts of them, with a plan for their attention."""
    if not any(counts):
        return Wanted(torch.empty(0, dtype=torch.int64, device=batch.positions.device), None, None)
    tokens, narrow = _narrowed(batch, counts)
    return Wanted(tokens, narrow, backend.attention.plan(narrow, block_size))


def last_tokens(query_lens: Sequence[int], counts: Iterable[int]) -> NDArray[np.int64]:
    """Indices in the flat batch of the last tokens of each row, counts of them."""
    lens = np.fromiter(counts, dtype=np.int64, count=len(query_lens))
    ends = np.cumsum(lens)
    return np.arange(ends[-1]) + np.repeat(np.cumsum(query_lens) - ends, lens)


def _narrowed(batch: FlatBatch, counts: Sequence[int]) -> tuple[Tensor, FlatBatch]:
    """The last tokens of each row of batch, counts of them: their indices, and a batch of them.

    Rows of none are left out; at least one has some.
    """
    rows = [row for row, count in enumerate(counts) if count]
    lens = tuple(counts[row] for row in rows)
    device = batch.positions.device
    index = torch.from_numpy(last_tokens(batch.host_query_lens, counts)).to(device)
    kept = torch.tensor(rows, device=device)
    return index, FlatBatch(
        positions=batch.positions[index],
        slots=batch.slots[index],
        block_tables=batch.block_tables[kept],
        query_starts=_starts(np.cumsum(lens)).to(device),
        context_lens=batch.context_lens[kept],
        host_query_lens=lens,
        host_context_lens=tuple(batch.host_context_lens[row] for row in rows),
        adapters=None
        if batch.adapters is None
        else AdapterRows(batch.adapters.numbers[index].contiguous()),
    )


def _starts(ends: NDArray[np.int64]) -> Tensor:
    """int32 [R + 1]: where each row starts, and where the last one ends."""
    starts = np.zeros(len(ends) + 1, dtype=np.int32)
    starts[1:] = ends
    return torch.from_numpy(starts)
