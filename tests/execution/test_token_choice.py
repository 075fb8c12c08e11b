"""Which of a row's draws hold, and what the head of a model knows of its tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loire.base.sampling import SamplingParams
from loire.base.step import NewSequence, StepPlan, StepRow
from loire.checkpoint.open import open_checkpoint
from loire.execution.constraints import ConstraintFactory
from loire.execution.forward import Logits
from loire.execution.hidden_states import HiddenStates
from loire.execution.inputs import host_batch
from loire.execution.penalty_table import PenaltyTable
from loire.execution.sampler import Draw
from loire.execution.sampling_state import SamplingState
from loire.execution.token_choice import SamplingRow
from loire.kernels.interface import Backend, LowRank
from loire.kernels.native.backend import NativeBackend
from loire.kernels.reference import ReferenceBackend
from loire.models.loading import load_decoder
from loire.text.tokenizer import Tokenizer

CPU = torch.device("cpu")


def _no_tokenizer() -> Tokenizer:
    raise AssertionError("no test here has a constraint")


def _row(drafts: tuple[int, ...]) -> SamplingRow:
    new = NewSequence(0, SamplingParams(), seed=0, choice=0, prompt_token_ids=(1, 2))
    constraints = ConstraintFactory(_no_tokenizer, 10)
    state = SamplingState(new, constraints, PenaltyTable(10, CPU))
    row = StepRow(0, (5, 6, *drafts), start=3, samples=True, num_drafts=len(drafts))
    return SamplingRow(row, state, end=20)


ERROR = Draw(error="an error")


@pytest.mark.parametrize(
    ("drafts", "draws", "tokens", "error"),
    [
        ((), (Draw(7),), (7,), None),
        ((), (ERROR,), (), "an error"),
        ((7, 8), (Draw(7), Draw(8), Draw(9)), (7, 8, 9), None),
        ((7, 8), (Draw(7), Draw(4), Draw(9)), (7, 4), None),
        ((7, 8), (Draw(4), Draw(8), Draw(9)), (4,), None),
        ((7, 8), (Draw(4), ERROR, Draw(9)), (4,), None),
        # The next step begins behind what held, and meets the error itself.
        ((7, 8), (Draw(7), ERROR, Draw(9)), (7,), None),
        ((7, 8), (Draw(7), Draw(8), ERROR), (7, 8), None),
        ((7, 8), (ERROR, Draw(8), Draw(9)), (), "an error"),
    ],
)
def test_draws_hold_as_far_as_the_drafts(
    drafts: tuple[int, ...], draws: tuple[Draw, ...], tokens: tuple[int, ...], error: str | None
) -> None:
    row = _row(drafts)
    assert (row.token, row.position) == (19 - len(drafts), 5)
    row.draws += draws
    outcome = row.outcome()
    assert (outcome.token_ids, outcome.error) == (tokens, error)


def test_a_row_goes_on_while_drafts_hold() -> None:
    row = _row((7, 8))
    for draw, goes_on in ((Draw(7), True), (Draw(8), True), (Draw(9), False)):
        row.draws.append(draw)
        assert row.goes_on is goes_on
    for failed in (Draw(3), ERROR):
        row = _row((7, 8))
        row.draws += (Draw(7), failed)
        assert not row.goes_on


@pytest.mark.parametrize("kernels", ["native", "reference"])
@torch.inference_mode()
def test_adapters_reach_the_head(tiny_llama: Path, kernels: str) -> None:
    """Tokens with an adapter get its part of the logits, and no others."""
    usable, why = NativeBackend.available()
    if kernels == "native" and not usable:
        pytest.skip(why)
    backend: Backend = NativeBackend() if kernels == "native" else ReferenceBackend()
    decoder = load_decoder(
        open_checkpoint(tiny_llama),
        dtype=torch.float32,
        device=CPU,
        backend=backend,
        max_model_len=64,
    )
    generator = torch.Generator().manual_seed(0)
    size, vocab_size = decoder.head.in_features, decoder.head.out_features
    values = torch.randn(6, size, generator=generator)
    down, up = torch.randn(2, size, generator=generator), torch.randn(vocab_size, 2)
    decoder.head.adapt(1, decoder.head.pack_adapter([LowRank(down, up)]))
    rows = (StepRow(0, (1, 2, 3), 4), StepRow(1, (4, 5, 6), 0))
    host = host_batch(StepPlan(0, rows), np.zeros((2, 1), dtype=np.int32), 16, lambda _: 0)
    latest = torch.zeros(1, dtype=torch.int64)

    def logits(adapters: list[int] | None, tokens: list[int]) -> torch.Tensor:
        numbers = None if adapters is None else np.array(adapters, dtype=np.int32)
        batch = replace(host, adapters=numbers)
        return HiddenStates(Logits(decoder), values, batch, (3, 3), latest).logits(tokens).clone()

    plain = logits(None, [2, 3, 5])
    adapted = logits([1, 1, 1, -1, -1, 1], [2, 3, 5])
    assert torch.equal(adapted[1], plain[1])
    added = values[[2, 5]] @ down.T @ up.T
    torch.testing.assert_close(adapted[[0, 2]], plain[[0, 2]] + added)
    assert torch.equal(logits([-1] * 6, [2, 3, 5]), plain)
