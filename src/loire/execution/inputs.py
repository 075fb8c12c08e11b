"""From a StepPlan to the arrays and tensors of a flat batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import add

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loire.base.step import PENDING_TOKEN, StepPlan, StepRow
from loire.kernels.interface import AttentionPlan, Backend, FlatBatch, HostBatch, Wanted


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
    flat = [token_id for row in rows for token_id in row.token_ids]
    host = batch_of(
        np.array(flat, dtype=np.int64),
        [row.start for row in rows],
        tuple([len(row.token_ids) for row in rows]),
        block_tables,
        block_size,
    )
    pending = _pending(rows, host.query_starts, place)
    return host if pending is None else replace(host, pending=pending)


def batch_of(
    token_ids: NDArray[np.int64],
    starts: Sequence[int],
    lens: tuple[int, ...],
    block_tables: NDArray[np.int32],
    block_size: int,
) -> HostBatch:
    """The same of tokens [T], of which each row has so many, from a position of its own on; none of
    them is pending."""
    find = _decoding_tokens if len(token_ids) == len(lens) else _tokens_of_rows
    positions, slots, query_starts = find(starts, lens, block_tables, block_size)
    return HostBatch(
        token_ids=token_ids,
        pending=None,
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
    return positions, _slots(tables, row_of, positions, block_size), _starts(ends)


def _decoding_tokens(
    starts: Sequence[int], lens: Sequence[int], tables: NDArray[np.int32], block_size: int
) -> _Tokens:
    """The same of rows of one token. Weights have emptied the caches before each step, and then the
    first call of any function of numpy takes 20 microseconds: lists are faster here."""
    slots = [
        tables.item(row, start // block_size) * block_size + start % block_size
        for row, start in enumerate(starts if block_size else ())
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
        slots = _slots(table, row_of, host.positions, size)
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
    host: HostBatch,
    counts: Sequence[int],
    tables: Sequence[NDArray[np.int32]],
    block_sizes: Sequence[int],
    groups: Sequence[int],
    backend: Backend,
    latest: Tensor,
) -> tuple[HostBatch, Wanted]:
    """The last tokens of each row of host, counts of them, with plans for their attention.

    tables, block_sizes: by cache group; a size of 0 is that of a state, which needs no plan for
    what is left. groups: those that are read for these tokens alone; the batch on the host is as
    the first of them has it. latest: as upload() takes it.
    """
    found = {group: narrowed(host, counts, tables[group], block_sizes[group]) for group in groups}
    index, narrow = found[groups[0]]
    tokens = torch.from_numpy(index).to(latest.device)
    if not len(index):
        return narrow, Wanted(tokens, (), ())
    batches: dict[int, FlatBatch] = {}
    plans: dict[int, AttentionPlan | None] = {}
    for group, (_, own) in found.items():
        _, batches[group] = backend.transfers.upload(own, latest)
        size = block_sizes[group]
        plans[group] = backend.attention.plan(batches[group], size) if size else None
    each = [group if group in found else groups[0] for group in range(len(tables))]
    wanted = Wanted(tokens, [batches[group] for group in each], [plans[group] for group in each])
    return narrow, wanted


def narrowed(
    host: HostBatch, counts: Sequence[int], block_tables: NDArray[np.int32], block_size: int
) -> tuple[NDArray[np.int64], HostBatch]:
    """The last tokens of each row of host, counts of them: their indices, and a batch of them.

    Rows of none are left out. block_tables, block_size: of the cache group it is for.
    """
    lens = np.fromiter(counts, dtype=np.int64, count=len(counts))
    [rows] = lens.nonzero()
    ends = np.cumsum(lens)
    row_of = np.repeat(np.arange(len(lens)), lens)
    # Of a row's tokens the last ones: so many before the row's end in host as in the new batch.
    index = np.arange(len(row_of)) + (host.query_starts[1:] - ends)[row_of]
    positions = host.positions[index]
    return index, HostBatch(
        token_ids=host.token_ids[index],
        pending=None if host.pending is None else host.pending[index],
        positions=positions,
        slots=_slots(block_tables, row_of, positions, block_size),
        block_tables=block_tables[rows],
        query_starts=_starts(ends[rows]),
        query_lens=tuple(lens[rows].tolist()),
        context_lens=tuple(host.context_lens[row] for row in rows),
        adapters=None if host.adapters is None else host.adapters[index],
    )


def one_by_one(host: HostBatch, tokens: NDArray[np.int64]) -> HostBatch:
    """Some tokens of host (indices [L]), each as a row of its own."""
    row_of = np.searchsorted(host.query_starts, tokens, side="right") - 1
    positions = host.positions[tokens]
    return HostBatch(
        token_ids=host.token_ids[tokens],
        pending=None if host.pending is None else host.pending[tokens],
        positions=positions,
        slots=host.slots[tokens],
        block_tables=host.block_tables[row_of],
        query_starts=np.arange(len(tokens) + 1, dtype=np.int32),
        query_lens=(1,) * len(tokens),
        context_lens=tuple((positions + 1).tolist()),
        adapters=None if host.adapters is None else host.adapters[tokens],
    )


def _slots(
    block_tables: NDArray[np.int32],
    row_of: NDArray[np.int64],
    positions: NDArray[np.int64],
    block_size: int,
) -> NDArray[np.int64]:
    """int64 [T], of tokens in these rows at these positions; none for a state, of block size 0."""
    if not block_size:
        return np.zeros(0, dtype=np.int64)
    blocks, offsets = np.divmod(positions, block_size)
    slots: NDArray[np.int64] = block_tables[row_of, blocks] * np.int64(block_size) + offsets
    return slots


def _starts(ends: NDArray[np.int64]) -> NDArray[np.int32]:
    """[R + 1]: where each row starts, and where the last one ends."""
    starts = np.zeros(len(ends) + 1, dtype=np.int32)
    starts[1:] = ends
    return starts
