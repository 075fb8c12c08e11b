"""Sampling: each parameter does what it says, and a row never depends on its neighbours."""

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.base.sampling import SamplingParams
from loire.base.step import NewSequence
from loire.execution import sampler
from loire.execution.constraints import ConstraintFactory
from loire.execution.penalty_table import PenaltyTable
from loire.execution.random_numbers import uniform
from loire.execution.sampling_state import SamplingState
from loire.kernels.reference import ReferenceBackend
from loire.text.tokenizer import Tokenizer

VOCAB = 2000


def _no_tokenizer() -> Tokenizer:
    raise AssertionError("no test here has a constraint")


CONSTRAINTS = ConstraintFactory(_no_tokenizer, VOCAB)
CPU = torch.device("cpu")
PENALTIES = PenaltyTable(VOCAB, CPU)
BACKEND = ReferenceBackend()


def sample(
    logits: torch.Tensor, states: list[SamplingState], positions: list[int]
) -> list[sampler.Draw]:
    sampled = sampler.sample(logits, states, positions, BACKEND, PENALTIES)
    draws = sampled.draws()
    tokens = sampled.tokens.tolist()
    assert all(draw.token_id in (None, token) for draw, token in zip(draws, tokens, strict=True))
    return draws


def _state(
    *,
    seed: int = 0,
    choice: int = 0,
    prompt: tuple[int, ...] = (1, 2),
    output: tuple[int, ...] = (),
    stops: tuple[int, ...] = (),
    **params: Any,
) -> SamplingState:
    new = NewSequence(
        seq_id=0,
        params=SamplingParams(**params),
        seed=seed,
        choice=choice,
        prompt_token_ids=prompt,
        output_token_ids=output,
        stop_token_ids=stops,
    )
    return SamplingState(new, CONSTRAINTS, PENALTIES)


def _logits(seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def _draw_many(logits: torch.Tensor, count: int, **params: Any) -> list[int]:
    states = [_state(seed=seed, **params) for seed in range(count)]
    draws = sample(logits.expand(count, -1).clone(), states, [5] * count)
    return [draw.token_id for draw in draws if draw.token_id is not None]


def test_greedy_takes_the_likeliest() -> None:
    logits = _logits()
    [draw] = sample(logits.clone(), [_state(temperature=0.0)], [2])
    assert draw.token_id == int(logits.argmax())


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5},
    ],
)
def test_frequencies_follow_the_definition(params: dict[str, Any]) -> None:
    """4,000 draws against the distribution computed the plain way, in float64."""
    logits = _logits(seed=4)
    expected = _plain_distribution(logits[0].double(), **params)
    draws = torch.tensor(_draw_many(logits, 4000, **params))
    counted = torch.bincount(draws, minlength=VOCAB).double() / len(draws)
    assert not counted[expected == 0].any(), "a token was drawn that the parameters exclude"
    # Total variation of 4,000 draws of a distribution this flat stays well below this.
    assert 0.5 * (counted - expected).abs().sum() < 0.15


def _plain_distribution(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> torch.Tensor:
    probs = torch.softmax(logits / temperature, 0)
    probs[probs < min_p * probs.max()] = 0
    order = probs.argsort(descending=True)
    if top_k:
        probs[order[top_k:]] = 0
    probs /= probs.sum()
    before = probs[order].cumsum(0) - probs[order]
    probs[order[before >= top_p]] = 0
    return probs / probs.sum()


def test_flat_distribution_needs_the_full_sort_for_top_p() -> None:
    """Nearly uniform logits: 1,024 of 2,000 tokens do not reach 0.9, and the rest must count."""
    logits = _logits(seed=1) * 1e-3
    expected = _plain_distribution(logits[0].double(), top_p=0.9)
    draws = _draw_many(logits, 3000, top_p=0.9)
    assert all(expected[token] > 0 for token in draws)
    assert len({*draws}) > 1100


def test_min_tokens_forbids_stops_until_then() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7], logits[0, 8] = 9.0, 5.0
    state = _state(temperature=0.0, min_tokens=3, prompt=(1, 2), stops=(7,))
    assert [sample(logits.clone(), [state], [p])[0].token_id for p in (2, 4, 5)] == [8, 8, 7]


def test_bias_and_penalties() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 3], logits[0, 4], logits[0, 5] = 2.0, 1.5, -1.0

    def first(**params: Any) -> int | None:
        return sample(logits.clone(), [_state(temperature=0.0, **params)], [9])[0].token_id

    assert first() == 3
    assert first(logit_bias={5: 10.0}) == 5
    assert first(logit_bias={3: -100.0}) == 4
    assert first(output=(3,), presence_penalty=1.0) == 4
    assert first(prompt=(3,), presence_penalty=1.0) == 3, "presence counts the output only"
    assert first(output=(3,), frequency_penalty=0.3) == 3
    assert first(output=(3, 3), frequency_penalty=0.3) == 4
    assert first(prompt=(3,), repetition_penalty=2.0) == 4, "repetition counts the prompt, too"


def test_tokens_sampled_later_are_counted() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 3], logits[0, 4] = 2.0, 1.5
    state = _state(temperature=0.0, presence_penalty=1.0)
    assert [sample(logits.clone(), [state], [p])[0].token_id for p in (2, 3, 4)] == [3, 4, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_fails_alone(bad: float) -> None:
    logits = _logits(rows=3)
    expected = [int(row.argmax()) for row in logits]
    logits[1, 17] = bad
    draws = sample(logits, [_state(temperature=0.0)] * 3, [2] * 3)
    assert [draw.token_id for draw in draws] == [expected[0], None, expected[2]]
    assert draws[1].error is not None
    assert "not finite" in draws[1].error


def test_logprobs_are_of_the_unmodified_model() -> None:
    logits = _logits(seed=2)
    logprobs = torch.log_softmax(logits[0], 0)
    [draw] = sample(logits.clone(), [_state(seed=1, logprobs=3, logit_bias={9: 50.0})], [4])
    assert draw.token_id == 9
    entry = draw.logprobs
    assert entry is not None
    top = logprobs.topk(3)
    assert entry.token_ids == (9, *top.indices.tolist())
    assert entry.logprobs == pytest.approx((float(logprobs[9]), *top.values.tolist()))
    assert entry.rank == int((logprobs >= logprobs[9]).sum())


KNOBS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_k": st.sampled_from([1, 5, 64, 65, 1999]),
        "top_p": st.sampled_from([0.05, 0.5, 0.999]),
        "min_p": st.sampled_from([0.01, 0.2]),
        "repetition_penalty": st.sampled_from([0.8, 1.2]),
        "logprobs": st.sampled_from([0, 4]),
    },
)


@settings(deadline=None, max_examples=60)
@given(st.lists(KNOBS, min_size=2, max_size=9), st.integers(0, 2**64 - 1))
def test_company_changes_nothing(knobs: list[dict[str, Any]], seed: int) -> None:
    logits = _logits(seed=3, rows=len(knobs))

    def draw(rows: list[int]) -> list[Any]:
        states = [_state(seed=seed + row, output=(5, 6), **knobs[row]) for row in rows]
        return sample(logits[rows].clone(), states, [10 + row for row in rows])

    together = draw(list(range(len(knobs))))
    assert together == [draw([row])[0] for row in range(len(knobs))]
    assert together[::-1] == draw(list(range(len(knobs)))[::-1])


def test_random_numbers_are_uniform_and_independent() -> None:
    seeds, choices, positions = zip(*product(range(20), range(10), range(100)), strict=True)
    numbers = uniform(seeds, choices, positions).tolist()
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.01
    lag = sum((a - 0.5) * (b - 0.5) for a, b in pairwise(numbers))
    assert abs(lag / len(numbers)) < 3 / 12 / math.sqrt(len(numbers))
    assert uniform([-1], [0], [0]) == uniform([2**64 - 1], [0], [0]), "seeds are 64 bits"


def _plain_uniform(seed: int, choice: int, position: int) -> float:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014) three times, in Python's own numbers."""
    x = seed
    for word in (0, choice, position):
        x = ((x ^ word) + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
    return (x >> 11) * 2.0**-53


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 127), st.integers(0, 2**20))))
def test_random_numbers_are_those_of_splitmix(triples: list[tuple[int, int, int]]) -> None:
    """To the bit: a request with a seed gives what it gave before."""
    columns = tuple(zip(*triples, strict=True)) or ((), (), ())
    assert uniform(*columns).tolist() == [_plain_uniform(*triple) for triple in triples]


def test_lines_of_penalties_are_used_again() -> None:
    table = PenaltyTable(10, CPU)
    lines = [table.take([1], [2, 2]) for _ in range(5)]
    assert len(set(lines)) == 5
    table.counts[lines[3]] = 7
    table.give_back(lines[3])
    for line in iter(lambda: table.take([4], [5]), lines[3]):
        lines.append(line)
    assert table.counts[lines[3]].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert table.seen[lines[3]].nonzero().flatten().tolist() == [4, 5]
    assert table.counts[lines[4]].tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
