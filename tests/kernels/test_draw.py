"""Drawing tokens: every backend keeps what SamplingKnobs says and draws where the sums pass."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_cases import SETS
from native_cases import backend as native
from torch import Tensor

from loire.kernels.interface import Backend, SamplingKnobs
from loire.kernels.reference import ReferenceBackend

BACKENDS = ["reference", *SETS]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return ReferenceBackend() if request.param == "reference" else native(2, request.param)


def knobs(rows: list[dict[str, float]], vocab_size: int) -> SamplingKnobs:
    def column(name: str, default: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor([row.get(name, default) for row in rows], dtype=dtype)

    return SamplingKnobs(
        temperature=column("temperature", 1.0),
        min_p=column("min_p", 0.0),
        top_k=column("top_k", vocab_size, torch.int64),
        top_p=column("top_p", 1.0),
        draw=column("draw", 0.0, torch.float64),
    )


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


@pytest.mark.parametrize("name", BACKENDS)
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
    name: str,
    rows: list[dict[str, float]],
    vocab_size: int,
    spread: float,
    forbidden: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), vocab_size, generator=generator) * spread
    logits[:, 1:][torch.rand(logits[:, 1:].shape, generator=generator) < forbidden] = -torch.inf
    backend = ReferenceBackend() if name == "reference" else native(2, name)
    tokens = backend.draw(logits.clone(), knobs(rows, vocab_size)).tolist()
    for token, row, given_logits in zip(tokens, rows, logits, strict=True):
        assert fits(token, given_logits, row), (token, row)


def test_a_row_is_drawn_alike_in_any_batch(backend: Backend) -> None:
    logits = torch.randn(12, 3000, generator=torch.Generator().manual_seed(1)) * 2
    rows: list[dict[str, float]] = [
        {"draw": index / 12, "top_p": (1.0, 0.5, 0.95)[index % 3], "top_k": (3000, 40)[index % 2]}
        for index in range(12)
    ]
    together = backend.draw(logits, knobs(rows, 3000)).tolist()
    alone = [backend.draw(logits[i : i + 1], knobs([rows[i]], 3000)).item() for i in range(12)]
    assert together == alone


def test_ties_and_extremes(backend: Backend) -> None:
    """The first of equals; nothing but what is allowed; the likeliest for the smallest top-p."""
    equal = torch.zeros(4, 3000)
    last = [{"draw": 1 - 1e-9, "top_k": 7}, {"draw": 1 - 1e-9, "top_p": 0.125}, {"draw": 0.0}]
    tokens = backend.draw(equal, knobs([*last, {"draw": 1 - 1e-9}], 3000)).tolist()
    assert tokens[1] in (374, 375)  # as sums of 3,000 equals round
    assert [tokens[0], *tokens[2:]] == [6, 0, 2999]
    single = torch.full((2, 3000), -torch.inf)
    single[:, 1234] = -80.0
    assert backend.draw(
        single, knobs([{"draw": 0.7}, {"draw": 0.1, "top_p": 0.5}], 3000)
    ).tolist() == [
        1234,
        1234,
    ]
