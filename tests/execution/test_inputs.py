"""From plans to batches: pending tokens come from where the model computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from loire.base.step import PENDING_TOKEN, StepPlan, StepRow
from loire.execution.inputs import host_batch, narrowed, one_by_one
from loire.execution.latest_tokens import FEWEST_PLACES, LatestTokens
from loire.kernels.reference import ReferenceBackend

CPU = torch.device("cpu")


def row(seq_id: int, tokens: tuple[int, ...], start: int) -> StepRow:
    return StepRow(seq_id=seq_id, token_ids=tokens, start=start, samples=True)


@pytest.mark.parametrize("tokens", [(5,), (5, 6)])
def test_tokens_have_no_slots_in_a_state(tokens: tuple[int, ...]) -> None:
    tables = np.array([[3, 6], [1, 2]], dtype=np.int32)
    host = host_batch(StepPlan(0, (row(4, tokens, 9), row(2, tokens, 0))), tables, 0, lambda _: 0)
    assert host.slots.tolist() == []
    assert host.positions.tolist() == [*range(9, 9 + len(tokens)), *range(len(tokens))]


def test_rows_one_after_another() -> None:
    plan = StepPlan(0, (row(4, (7, 8, 9), 15), row(2, (5,), 0), row(9, (1, 2), 33)))
    tables = np.array([[3, 6, 0], [1, 0, 0], [9, 8, 2]], dtype=np.int32)
    host = host_batch(plan, tables, 16, lambda _: 0)
    assert host.pending is None
    assert host.token_ids.tolist() == [7, 8, 9, 5, 1, 2]
    assert host.positions.tolist() == [15, 16, 17, 0, 33, 34]
    assert host.slots.tolist() == [63, 96, 97, 16, 33, 34]
    assert host.query_starts.tolist() == [0, 3, 4, 6]
    assert host.context_lens == (18, 1, 35)
    tokens, batch = ReferenceBackend().transfers.upload(host, torch.zeros(1, dtype=torch.int64))
    assert tokens.tolist() == host.token_ids.tolist()
    assert (batch.host_query_lens, batch.host_context_lens) == ((3, 1, 2), (18, 1, 35))
    kinds = [batch.positions, batch.slots, batch.block_tables, batch.query_starts]
    assert [x.dtype for x in kinds] == [torch.int64, torch.int64, torch.int32, torch.int32]


def test_pending_tokens_are_those_sampled_last() -> None:
    latest = LatestTokens(CPU)
    latest.put([4, 2], torch.tensor([40, 20]))
    latest.put([2], torch.tensor([21]))
    plan = StepPlan(
        0, (row(2, (PENDING_TOKEN,), 5), row(7, (3,), 0), row(4, (8, PENDING_TOKEN), 9))
    )
    tables = np.zeros((3, 1), dtype=np.int32)
    host = host_batch(plan, tables, 16, latest.place)
    tokens, _ = ReferenceBackend().transfers.upload(host, latest.tokens)
    assert tokens.tolist() == [21, 3, 8, 40]


def test_places_are_given_back_and_grow() -> None:
    latest = LatestTokens(CPU)
    many = list(range(3 * FEWEST_PLACES))
    latest.put(many, torch.tensor(many) + 1000)
    assert latest.tokens[[latest.place(seq_id) for seq_id in many]].tolist() == [
        seq_id + 1000 for seq_id in many
    ]
    size = len(latest.tokens)
    for seq_id in many[:100]:
        latest.drop(seq_id)
    latest.drop(10**6)
    latest.put(range(5000, 5100), torch.arange(100))
    assert len(latest.tokens) == size
    assert latest.tokens[latest.place(150)] == 1150
    assert len({latest.place(seq_id) for seq_id in (*many[100:], *range(5000, 5100))}) == len(many)


def test_some_tokens_of_a_batch() -> None:
    """The last ones of each row in the tables of any group, and any ones as rows of their own."""
    plan = StepPlan(0, (row(4, (7, 8, 9), 15), row(2, (5,), 0), row(9, (1, 2), 33)))
    tables = np.array([[3, 6, 0], [1, 0, 0], [9, 8, 2]], dtype=np.int32)
    host = replace(
        host_batch(plan, tables, 16, lambda _: 0),
        adapters=np.array([0, 0, 0, -1, 2, 2], dtype=np.int32),
    )
    index, narrow = narrowed(host, (2, 0, 1), tables + 1, 32)
    assert index.tolist() == [1, 2, 5]
    assert narrow.token_ids.tolist() == [8, 9, 2]
    assert narrow.positions.tolist() == [16, 17, 34]
    assert narrow.slots.tolist() == [4 * 32 + 16, 4 * 32 + 17, 9 * 32 + 2]
    assert narrow.block_tables.tolist() == [[4, 7, 1], [10, 9, 3]]
    assert narrow.query_starts.tolist() == [0, 2, 3]
    assert (narrow.query_lens, narrow.context_lens) == ((2, 1), (18, 35))
    assert narrow.adapters is not None
    assert narrow.adapters.tolist() == [0, 0, 2]
    index, of_states = narrowed(host, (0, 1, 0), tables, 0)
    assert (index.tolist(), of_states.slots.tolist()) == ([3], [])
    index, nothing = narrowed(host, (0, 0, 0), tables, 16)
    assert len(index) == len(nothing.query_lens) == 0
    some = one_by_one(host, np.array([0, 3, 5]))
    assert some.positions.tolist() == [15, 0, 34]
    assert some.slots.tolist() == [63, 16, 34]
    assert some.block_tables.tolist() == tables.tolist()
    assert some.query_starts.tolist() == [0, 1, 2, 3]
    assert (some.query_lens, some.context_lens) == ((1, 1, 1), (16, 1, 35))
    assert some.adapters is not None
    assert some.adapters.tolist() == [0, -1, 2]
