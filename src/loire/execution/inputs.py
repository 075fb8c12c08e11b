"""From a StepPlan to the tensors of a flat batch."""

from collections.abc import Callable

import numpy as np
import torch

from loire.base.step import PENDING_TOKEN, StepPlan, StepRow
from loire.kernels.interface import FlatBatch


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
    tables = np.zeros((len(rows), max(len(row.block_table) for row in rows)), dtype=np.int32)
    for index, row in enumerate(rows):
        tables[index, : len(row.block_table)] = row.block_table
    lens = np.asarray(query_lens, dtype=np.int64)
    query_starts = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(lens, out=query_starts[1:])
    row_of = np.repeat(np.arange(len(rows)), lens)
    starts = np.asarray([row.start for row in rows], dtype=np.int64)
    positions = np.arange(len(row_of)) - query_starts[:-1].astype(np.int64)[row_of] + starts[row_of]
    blocks = tables[row_of, positions // block_size].astype(np.int64)
    slots = blocks * block_size + positions % block_size
    return FlatBatch(
        positions=torch.from_numpy(positions).to(device),
        slots=torch.from_numpy(slots).to(device),
        block_tables=torch.from_numpy(tables).to(device),
        query_starts=torch.from_numpy(query_starts).to(device),
        context_lens=torch.tensor(context_lens, dtype=torch.int32, device=device),
        host_query_lens=query_lens,
        host_context_lens=context_lens,
    )
