"""From a StepPlan to the arrays and tensors of a flat batch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import add

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loire.base.step import PENDING_TOKEN, StepPlan, StepRow
from loire.kernels.interface import AdapterRows, Backend, FlatBatch, HostBatch, Wanted


def host_batch(
    plan: StepPlan,
    block_tables: NDArray[np.int32],
    block_size: int,
    place: Callable[[int], int],
) -> HostBatch:
    """Tokens, positions, slots and block tables of all rows, one after another without padding.

    block_tables: int32 [R, M], in the order of the rows. place: of a sequence's newest token, which
    stands where a row's last one is pending.
    """
    rows = plan.rows
    lens = tuple([len(row.token_ids) for row in rows])
    starts = [row.start for row in rows]
    flat = [token_id for row in rows for token_id in row.token_ids]
    find = _decoding_tokens if len(flat) == len(rows) else _tokens_of_rows
    positions, slots, query_starts = find(starts, lens, block_tables, block_size)
    return HostBatch(
        token_ids=np.array(flat, dtype=np.int64),
        pending=_pending(rows, query_starts, place),
        positions=positions,
        slots=slots,
        block_tables=block_tables,
        query_starts=query_starts,
        query_lens=lens,
        context_lens=tuple(map(add, starts, lens)),
    )


_Tokens = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]
"""Positions and slots [T], and where each row starts and the last one ends [R + 1]."""


def _tokens_of_rows(
    starts: Sequence[int], lens: Sequence[int], tables: NDArray[np.int32], block_size: int
) -> _Tokens:
    begins, sizes = np.array(starts, dtype=np.int64), np.array(lens, dtype=np.int64)
    ends = np.cumsum(sizes)
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    positions = np.arange(ends[-1]) + np.repeat(begins - (ends - sizes), sizes)
    blocks, offsets = np.divmod(positions, block_size)
    return positions, tables[row_of, blocks] * np.int64(block_size) + offsets, _starts(ends)


def _decoding_tokens(
    starts: Sequence[int], lens: Sequence[int], tables: NDArray[np.int32], block_size: int
) -> _Tokens:
    """The same of rows of one token. Weights have emptied the caches before each step, and then the
    first call of any function of numpy takes 20 microseconds: lists are faster here."""
    slots = [
        tables.item(row, start // block_size) * block_size + start % block_size
        for row, start in enumerate(starts)
    ]
    return (
        np.array(starts, dtype=np.int64),
        np.array(slots, dtype=np.int64),
        np.array(range(len(lens) + 1), dtype=np.int32),
    )


def group_batches(
    host: HostBatch,
    first: FlatBatch,
    block_tables: Sequence[NDArray[np.int32]],
    block_sizes: Sequence[int],
) -> tuple[FlatBatch, ...]:
    """The batch as each cache group has it: first, made of host, and one for each further group.

    block_tables, block_sizes: of the further groups; a size of 0 is that of a state, whose table
    holds the pages of slots, and whose tokens have no slots of their own.
    """
    if not block_tables:
        return (first,)
    row_of = np.repeat(np.arange(len(host.query_lens)), host.query_lens)
    device = first.positions.device
    batches = [first]
    for table, size in zip(block_tables, block_sizes, strict=True):
        slots = np.zeros(0, dtype=np.int64)
        if size:
            blocks, offsets = np.divmod(host.positions, size)
            slots = table[row_of, blocks] * np.int64(size) + offsets
        batches.append(
            replace(
                first,
                slots=torch.from_numpy(slots).to(device),
                block_tables=torch.from_numpy(table).to(device),
            )
        )
    return tuple(batches)


def _pending(
    rows: Sequence[StepRow], starts: NDArray[np.int32], place: Callable[[int], int]
) -> NDArray[np.int64] | None:
    """int64 [T]: the places of pending tokens, -1 elsewhere; None where there are none."""
    waiting = [index for index, row in enumerate(rows) if row.token_ids[-1] == PENDING_TOKEN]
    if not waiting:
        return None
    pending = np.full(starts[-1], -1, dtype=np.int64)
    pending[starts[1:][waiting] - 1] = [place(rows[index].seq_id) for index in waiting]
    return pending


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
        query_starts=torch.from_numpy(_starts(np.cumsum(lens))).to(device),
        context_lens=batch.context_lens[kept],
        host_query_lens=lens,
        host_context_lens=tuple(batch.host_context_lens[row] for row in rows),
        adapters=None
        if batch.adapters is None
        else AdapterRows(batch.adapters.numbers[index].contiguous()),
    )


def _starts(ends: NDArray[np.int64]) -> NDArray[np.int32]:
    """[R + 1]: where each row starts, and where the last one ends."""
    starts = np.zeros(len(ends) + 1, dtype=np.int32)
    starts[1:] = ends
    return starts
