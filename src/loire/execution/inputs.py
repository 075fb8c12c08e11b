"""From a StepPlan to the tensors of a flat batch."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from loire.base.step import PENDING_TOKEN, StepPlan, StepRow
from loire.kernels.interface import Backend, FlatBatch, Wanted


def token_ids_of(row: StepRow, last_sampled: Callable[[int], int]) -> list[int]:
    """The row's tokens, with a pending one replaced by what the step before sampled."""
    token_ids = list(row.token_ids)
    if token_ids[-1] == PENDING_TOKEN:
        token_ids[-1] = last_sampled(row.seq_id)
    return token_ids


def flat_batch(plan: StepPlan, block_size: int, device: torch.device) -> FlatBatch:
    """Positions, slots and block tables of all rows, one after another without padding.

    Only the table of block ids is rectangular (int32 [R, M], zeros past a row's own blocks).
    """
    rows = plan.rows
    query_lens = tuple(len(row.token_ids) for row in rows)
    context_lens = tuple(row.start + len(row.token_ids) for row in rows)
    positions: list[int] = []
    slots: list[int] = []
    for row, end in zip(rows, context_lens, strict=True):
        positions += range(row.start, end)
        slots += _slots(row.block_table, row.start, end, block_size)
    tables = np.zeros((len(rows), max(len(row.block_table) for row in rows)), dtype=np.int32)
    for index, row in enumerate(rows):
        tables[index, : len(row.block_table)] = row.block_table

    def tensor(values: Sequence[int], dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=dtype)).to(device)

    return FlatBatch(
        positions=tensor(positions, np.int64),
        slots=tensor(slots, np.int64),
        block_tables=torch.from_numpy(tables).to(device),
        query_starts=tensor((0, *accumulate(query_lens)), np.int32),
        context_lens=tensor(context_lens, np.int32),
        host_query_lens=query_lens,
        host_context_lens=context_lens,
    )


def wanted_tokens(
    batch: FlatBatch, counts: Sequence[int], backend: Backend, block_size: int
) -> Wanted:
    """The last tokens of each row of batch, counts of them, with a plan for their attention."""
    if not any(counts):
        return Wanted(torch.empty(0, dtype=torch.int64, device=batch.positions.device), None)
    tokens, narrow = _narrowed(batch, counts)
    return Wanted(tokens, backend.plan_attention(narrow, block_size))


def _narrowed(batch: FlatBatch, counts: Sequence[int]) -> tuple[Tensor, FlatBatch]:
    """The last tokens of each row of batch, counts of them: their indices, and a batch of them.

    Rows of none are left out; at least one has some.
    """
    rows = [row for row, count in enumerate(counts) if count]
    lens = tuple(counts[row] for row in rows)
    ends = list(accumulate(batch.host_query_lens))
    tokens = [index for row in rows for index in range(ends[row] - counts[row], ends[row])]
    device = batch.positions.device
    kept, index = torch.tensor(rows, device=device), torch.tensor(tokens, device=device)
    return index, FlatBatch(
        positions=batch.positions[index],
        slots=batch.slots[index],
        block_tables=batch.block_tables[kept],
        query_starts=torch.tensor((0, *accumulate(lens)), dtype=torch.int32, device=device),
        context_lens=batch.context_lens[kept],
        host_query_lens=lens,
        host_context_lens=tuple(batch.host_context_lens[row] for row in rows),
    )


def _slots(block_table: Sequence[int], start: int, end: int, block_size: int) -> Iterator[int]:
    """Where the tokens of positions [start, end) lie in the cache, block by block."""
    while start < end:
        block, offset = divmod(start, block_size)
        count = min(block_size - offset, end - start)
        slot = block_table[block] * block_size + offset
        yield from range(slot, slot + count)
        start += count
