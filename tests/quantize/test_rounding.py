"""Codes and scales: what is packed is what was chosen, and errors are made up for."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from loire.quantize.levels import FITTED_LEVELS, LEVELS, STANDARD_LEVELS, Levels, levels_for
from loire.quantize.rounding import (
    best_scales,
    round_to_nearest,
    round_with_feedback,
    weighted_error,
)

ALL_LEVELS = tuple(dict.fromkeys((*LEVELS, *STANDARD_LEVELS)))
ALL = pytest.mark.parametrize("levels", ALL_LEVELS, ids=lambda levels: levels.name)


def correlated_inputs(size: int, seed: int = 0) -> Tensor:
    """Second moments of inputs that are far from independent, float32 [size, size]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(size) + 0.3 * torch.randn(size, size, generator=generator) / size**0.5
    x = torch.randn(4 * size, size // 2, generator=generator) @ mix[: size // 2]
    return x.T @ x / len(x)


def product_error(weight: Tensor, rounded: Tensor, moments: Tensor) -> float:
    change = rounded - weight
    return float(
        torch.trace(change @ moments @ change.T) / torch.trace(weight @ moments @ weight.T)
    )


@ALL
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_packed_codes_are_read_back(levels: Levels, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    groups = 2 * levels.block // levels.group
    codes = torch.randint(0, len(levels.values), (3, groups, levels.group), generator=generator)
    scales = levels.held(torch.rand(3, groups, generator=generator))
    own = None
    if levels.fitted:
        own = torch.randint(-127, 128, (3, len(levels.values)), generator=generator).float()
    found = levels.pack(codes, scales, own)
    expected = (levels.numbers(codes, own) * scales[..., None]).view(3, -1)
    assert torch.equal(found.values(), expected)


@ALL
def test_the_nearest_level_is_taken(levels: Levels) -> None:
    numbers = torch.linspace(-140.0, 140.0, 561)
    values = torch.tensor(levels.values).float()
    codes = levels.nearest(numbers, values.expand(561, -1) if levels.fitted else None)
    distances = (numbers[:, None] - values).abs()
    best = distances.amin(dim=1)
    assert torch.equal(distances.gather(1, codes[:, None])[:, 0], best)


@ALL
def test_scales_are_at_least_as_good_as_the_outermost(levels: Levels) -> None:
    generator = torch.Generator().manual_seed(1)
    groups = torch.randn(8, 4, levels.group, generator=generator)
    importance = torch.rand(4, levels.group, generator=generator) + 0.1
    scales = best_scales(groups, importance, levels)

    def error(scales: Tensor) -> Tensor:
        rounded = levels.numbers(levels.nearest(groups / scales[..., None])) * scales[..., None]
        return (importance * (groups - rounded).square()).sum(-1)

    plain = (groups.abs().amax(-1) / levels.largest).half().float()
    assert (error(scales) <= error(plain) * 1.001).all()
    assert torch.equal(scales, scales.half().float())


@ALL
def test_feedback_helps_where_inputs_depend_on_one_another(levels: Levels) -> None:
    size = max(128, levels.block)
    weight = torch.randn(48, size, generator=torch.Generator().manual_seed(2))
    moments = correlated_inputs(size)
    alone = round_to_nearest(weight, moments.diagonal(), levels)
    together = round_with_feedback(weight, moments, levels)
    error = product_error(weight, alone.values(), moments)
    assert product_error(weight, together.values(), moments) < 0.8 * error


def test_more_bits_lose_less() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(3))
    errors = [weighted_error(weight, torch.ones(128), levels) for levels in LEVELS]
    assert errors == sorted(errors, reverse=True)
    assert [levels.bits for levels in LEVELS] == sorted(levels.bits for levels in LEVELS)


@ALL
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_extreme_weights_give_finite_numbers(levels: Levels, value: float) -> None:
    size = max(128, levels.block)
    weight = torch.full((2, size), value)
    rounded = round_with_feedback(weight, torch.zeros(size, size), levels)
    assert rounded.values().isfinite().all()


@pytest.mark.parametrize("fitted", FITTED_LEVELS, ids=lambda levels: levels.name)
def test_fitted_levels_follow_the_numbers(fitted: Levels) -> None:
    """Of each 64 rows: here some are far from normally distributed."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(100, 128, generator=generator)
    weight[64:] = weight[64:] ** 3
    importance = torch.rand(128, generator=generator) + 0.1
    found = round_to_nearest(weight, importance, fitted)
    assert found.levels is not None
    for rows in (slice(0, 64), slice(64, 100)):
        assert len(found.levels[rows].unique(dim=0)) == 1
    [plain] = [x for x in LEVELS if x.format is fitted.format and not x.fitted]
    usual = round_to_nearest(weight, importance, plain)

    def error(rounded: Tensor, rows: slice) -> float:
        return float((importance * (rounded - weight)[rows].square()).sum())

    assert error(found.values(), slice(0, 64)) < 0.97 * error(usual.values(), slice(0, 64))
    assert error(found.values(), slice(64, 100)) < 0.5 * error(usual.values(), slice(64, 100))
    assert fitted.bits_of([100], 128) == fitted.bits + 16 * len(fitted.values) / 12800


def test_rows_that_no_group_fills_have_fewer_formats() -> None:
    assert [x.format.name for x in levels_for(96)] == ["Q5_0", "Q8_0"]
    assert levels_for(50) == ()
