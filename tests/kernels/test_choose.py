"""Choosing tokens: every backend keeps what SamplingRows says and draws where the sums pass."""

import dataclasses
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_cases import SETS
from native_cases import backend as native
from torch import Tensor

from loire.base.errors import EngineError
from loire.kernels.interface import Backend, LogitEdits, Penalties, SamplingRows
from loire.kernels.reference import ReferenceBackend

BACKENDS = ["reference", *SETS]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return ReferenceBackend() if request.param == "reference" else native(2, request.param)


def knobs(rows: list[dict[str, float]], vocab_size: int) -> SamplingRows:
    def column(name: str, default: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor([row.get(name, default) for row in rows], dtype=dtype)

    return SamplingRows(
        temperature=column("temperature", 1.0),
        min_p=column("min_p", 0.0),
        top_k=column("top_k", vocab_size, torch.int64),
        top_p=column("top_p", 1.0),
        draw=column("draw", 0.0, torch.float64),
    )


def draw(backend: Backend, logits: Tensor, rows: SamplingRows) -> list[int]:
    return backend.sampling.choose(logits.clone(), rows).tokens.tolist()


def kept_weights(logits: Tensor, row: dict[str, float]) -> Tensor:
    """The definition in float64; of equals the first ones."""
    weights = torch.exp((logits.double() - logits.max()) / row.get("temperature", 1.0))
    weights[weights < row.get("min_p", 0.0)] = 0
    order = weights.sort(descending=True, stable=True).indices
    weights[order[int(row.get("top_k", len(logits))) :]] = 0
    if row.get("top_p", 1.0) < 1.0:
        before = weights[order].cumsum(0) - weights[order]
        weights[order[before >= row["top_p"] * weights.sum()]] = 0
    return weights


def fits(token: int, logits: Tensor, row: dict[str, float]) -> bool:
    """Whether the token may be drawn, give or take the rounding of where sums are cut or passed."""
    for shift in (0.0, -1e-5, 1e-5):
        shifted = dict(row)
        if row.get("top_p", 1.0) < 1.0:
            shifted["top_p"] = row["top_p"] + shift
        weights = kept_weights(logits, shifted)
        below, whole = weights[:token].sum(), weights.sum()
        target = row.get("draw", 0.0) * whole
        slack = 1e-5 * whole
        if (
            weights[token] > 0
            and below <= target + slack
            and below + weights[token] >= target - slack
        ):
            return True
    return False


ROWS = st.fixed_dictionaries(
    {"draw": st.floats(0, 1, exclude_max=True, allow_subnormal=False)},
    optional={
        "temperature": st.sampled_from((1e-3, 0.3, 1.0, 2.0, 50.0)),
        "min_p": st.sampled_from((0.001, 0.2, 1.0)),
        "top_k": st.sampled_from((1, 2, 17, 64, 1000)),
        "top_p": st.sampled_from((1e-6, 0.3, 0.9, 0.999)),
    },
)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=6),
    vocab_size=st.sampled_from((1, 5, 16, 1000, 1024, 1500, 5000)),
    spread=st.sampled_from((0.0, 1e-3, 1.0, 20.0)),
    forbidden=st.sampled_from((0.0, 0.5, 0.99)),
    seed=st.integers(0, 1000),
)
@example([{"draw": 0.999999, "top_p": 0.9}], 5000, 0.0, 0.0, 0)  # all equal
@example([{"draw": 0.5, "top_k": 17}], 5000, 0.0, 0.5, 0)
def test_draws_by_the_definition(
    rows: list[dict[str, float]],
    vocab_size: int,
    spread: float,
    forbidden: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), vocab_size, generator=generator) * spread
    kept = torch.rand(logits.shape, generator=generator) >= forbidden
    kept[:, 0] = True
    bits = np.zeros((len(rows), -(-vocab_size // 32) * 32), dtype=np.bool_)
    bits[:, :vocab_size] = kept.numpy()
    words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    masked = dataclasses.replace(knobs(rows, vocab_size), allowed=torch.from_numpy(words))
    backends = [ReferenceBackend(), *(native(2, name) for name in SETS)]
    drawn = [draw(backend, logits, masked) for backend in backends]
    logits[~kept] = -torch.inf
    for row, given_logits, *tokens in zip(rows, logits, *drawn, strict=True):
        for token in set(tokens):
            assert fits(token, given_logits, row), (token, tokens, row)


def test_a_row_is_drawn_alike_in_any_batch(backend: Backend) -> None:
    logits = torch.randn(12, 3000, generator=torch.Generator().manual_seed(1)) * 2
    rows: list[dict[str, float]] = [
        {"draw": index / 12, "top_p": (1.0, 0.5, 0.95)[index % 3], "top_k": (3000, 40)[index % 2]}
        for index in range(12)
    ]
    together = draw(backend, logits, knobs(rows, 3000))
    alone = [draw(backend, logits[i : i + 1], knobs([rows[i]], 3000))[0] for i in range(12)]
    assert together == alone


def test_ties_and_extremes(backend: Backend) -> None:
    """The first of equals; nothing but what is allowed; the likeliest for the smallest top-p."""
    equal = torch.zeros(4, 3000)
    last = [{"draw": 1 - 1e-9, "top_k": 7}, {"draw": 1 - 1e-9, "top_p": 0.125}, {"draw": 0.0}]
    tokens = draw(backend, equal, knobs([*last, {"draw": 1 - 1e-9}], 3000))
    assert tokens[1] in (374, 375)  # as sums of 3,000 equals round
    assert [tokens[0], *tokens[2:]] == [6, 0, 2999]
    single = torch.full((2, 3000), -1e30)
    single[:, 1234] = -80.0
    rows = knobs([{"draw": 0.7}, {"draw": 0.1, "top_p": 0.5}], 3000)
    assert draw(backend, single, rows) == [1234, 1234]


@pytest.mark.parametrize("size", [1, 15, 64, 1000, 2500])
def test_the_largest_and_whether_all_are_finite(backend: Backend, size: int) -> None:
    logits = torch.randn(9, size, generator=torch.Generator().manual_seed(1))
    logits[1] = 0.0  # all equal
    logits[2, size // 2 :] = 7.0  # the first of equals
    logits[3] = -1e30
    logits[4, -1], logits[5, 0] = float("nan"), float("inf")
    logits[6, size // 2] = float("-inf")
    chosen = backend.sampling.choose(logits.clone(), knobs([{"temperature": 0.0}] * 9, size))
    assert chosen.finite.tolist() == [True] * 4 + [False] * 3 + [True] * 2
    assert all(0 <= token < size for token in chosen.tokens.tolist())
    for row in (0, 1, 2, 3, 7, 8):
        assert chosen.tokens[row] == logits[row].argmax()


@dataclass(frozen=True)
class Case:
    """What one row is sampled under, in plain Python."""

    params: dict[str, float]
    edits: dict[int, float]
    penalties: tuple[float, float, float] | None
    prompt: list[int]
    output: list[int]
    allowed: list[int] | None


def adjusted(logits: Tensor, case: Case) -> Tensor:
    """A row of logits by the definition, one thing after another."""
    row = logits.clone()
    for token, addend in case.edits.items():
        row[token] += addend
    if case.penalties is not None:
        repetition, frequency, presence = case.penalties
        for token in {*case.prompt, *case.output}:
            row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
        for token in set(case.output):
            row[token] -= torch.tensor(frequency) * case.output.count(token)
            row[token] -= presence
    if case.allowed is not None:
        forbidden = torch.ones(len(row), dtype=torch.bool)
        forbidden[case.allowed] = False
        row[forbidden] = -torch.inf
    return row


def sampling_rows(cases: list[Case], vocab_size: int) -> SamplingRows:
    """Lines of counts in another order than that of the rows; one of them nobody has."""
    starts = torch.tensor([0, *(len(case.edits) for case in cases)]).cumsum(0)
    edits = LogitEdits(
        starts,
        torch.tensor([token for case in cases for token in case.edits], dtype=torch.int64),
        torch.tensor([addend for case in cases for addend in case.edits.values()]),
    )
    lines = len(cases) + 1
    places = torch.full((len(cases),), -1)
    counts = torch.randint(0, 5, (lines, vocab_size), dtype=torch.int32)
    seen = torch.rand(lines, vocab_size) < 0.5
    factors = torch.ones(3, len(cases))
    for row, case in enumerate(cases):
        if case.penalties is None:
            continue
        places[row] = line = lines - 1 - row
        counts[line] = torch.bincount(
            torch.tensor(case.output, dtype=torch.int64), minlength=vocab_size
        )
        seen[line] = False
        seen[line, [*case.prompt, *case.output]] = True
        factors[:, row] = torch.tensor(case.penalties)
    words = torch.full((len(cases), -(-vocab_size // 32)), -1, dtype=torch.int32)
    for row, case in enumerate(cases):
        if case.allowed is not None:
            bits = np.zeros(words.shape[1] * 32, dtype=np.bool_)
            bits[case.allowed] = True
            words[row] = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))
    base = knobs([case.params for case in cases], vocab_size)
    return dataclasses.replace(
        base,
        edits=edits,
        penalties=Penalties(places, counts, seen, *factors.contiguous()),
        allowed=words,
    )


def random_case(rng: random.Random, vocab_size: int) -> Case:
    def ids(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    return Case(
        params={
            "temperature": rng.choice((0.0, 0.0, 0.7, 1.3)),
            "draw": rng.random(),
            "top_k": rng.choice((5, vocab_size)),
            "top_p": rng.choice((0.8, 1.0)),
        },
        edits={token: rng.choice((-torch.inf, 3.0, -1.5)) for token in ids(rng.choice((0, 0, 4)))},
        penalties=rng.choice((None, (1.3, 0.0, 0.0), (0.7, 0.3, 0.2), (1.0, -0.5, 1.5))),
        prompt=ids(20),
        output=ids(20) * 2,
        allowed=sorted({*ids(vocab_size // 3), 1}) if rng.random() < 0.4 else None,
    )


@pytest.mark.parametrize("vocab_size", [50, 96, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_edits_penalties_and_masks_to_the_bit(backend: Backend, vocab_size: int, seed: int) -> None:
    """What is chosen is what the same backend chooses from logits that were changed before."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    cases = [random_case(rng, vocab_size) for _ in range(rng.choice((1, 7)))]
    logits = torch.randn(len(cases), vocab_size) * 2
    rows = sampling_rows(cases, vocab_size)
    assert rows.penalties is not None
    counts, seen = rows.penalties.counts.clone(), rows.penalties.seen.clone()
    chosen = backend.sampling.choose(logits.clone(), rows)
    assert chosen.finite.all()
    for row, case in enumerate(cases):
        changed = adjusted(logits[row], case)
        token = int(chosen.tokens[row])
        if case.params["temperature"] == 0.0:
            assert token == int(changed.argmax())
        else:  # (the definition of draws knows no temperature of 0)
            assert fits(token, changed, case.params)
        place = int(rows.penalties.places[row])
        if place >= 0:
            counts[place, token] += 1
            seen[place, token] = True
    assert torch.equal(rows.penalties.counts, counts), "each token is counted once, and no other"
    assert torch.equal(rows.penalties.seen, seen)


def test_backends_choose_alike(backend: Backend) -> None:
    """The changed logits have the same bits everywhere: greedy rows show it."""
    rng = random.Random(7)
    torch.manual_seed(7)
    cases = [
        dataclasses.replace(random_case(rng, 500), params={"temperature": 0.0}) for _ in range(40)
    ]
    logits = torch.randn(len(cases), 500)
    found = backend.sampling.choose(logits.clone(), sampling_rows(cases, 500)).tokens
    expected = [int(adjusted(row, case).argmax()) for row, case in zip(logits, cases, strict=True)]
    assert found.tolist() == expected


def test_native_refuses_what_is_outside() -> None:
    if not SETS:
        pytest.skip("there is no native library")
    rows = sampling_rows([Case({}, {99: 1.0}, (1.1, 0.0, 0.0), [1], [], None)], 100)
    assert rows.penalties is not None
    assert rows.edits is not None
    native().sampling.choose(torch.zeros(1, 100), rows)
    outside = dataclasses.replace(rows.edits, tokens=torch.tensor([100]))
    with pytest.raises(EngineError, match="token 100 is not below 100"):
        native().sampling.choose(torch.zeros(1, 100), dataclasses.replace(rows, edits=outside))
    nowhere = dataclasses.replace(rows.penalties, places=torch.tensor([2]))
    with pytest.raises(EngineError, match="line of counts 2 is not below 2"):
        native().sampling.choose(torch.zeros(1, 100), dataclasses.replace(rows, penalties=nowhere))
