"""Gated delta net, Mamba-2 and short convolution: every backend against the recurrence as it is
written down, one token after another."""

import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loire.base.cache_geometry import state_places
from loire.kernels.cpu import CpuBackend
from loire.kernels.interface import (
    Backend,
    DeltaNetShape,
    DeltaNetWeights,
    FlatBatch,
    Mamba2Shape,
    Mamba2Weights,
    StateCache,
    StatePlaces,
)
from loire.kernels.native.backend import NativeBackend, instruction_sets
from loire.kernels.reference import ReferenceBackend
from loire.kernels.reference_recurrent import read_state

usable, why = NativeBackend.available()
SHAPES = [
    DeltaNetShape(1, 1, 8, 8, heads_in_turn=False, eps=1e-6),
    DeltaNetShape(2, 4, 16, 24, heads_in_turn=False, eps=1e-6),
    DeltaNetShape(2, 6, 32, 16, heads_in_turn=True, eps=1e-5),
    DeltaNetShape(3, 3, 20, 40, heads_in_turn=False, eps=1e-6),
    DeltaNetShape(1, 2, 128, 128, heads_in_turn=False, eps=1e-6),
]
MAMBA2_SHAPES = [
    Mamba2Shape(2, 1, 8, 8, least_step=0.0, most_step=float("inf"), eps=1e-5),
    Mamba2Shape(6, 3, 40, 20, least_step=0.2, most_step=1.5, eps=1e-5),
    Mamba2Shape(4, 2, 64, 128, least_step=0.0, most_step=float("inf"), eps=1e-6),
]
WIDTH = 4
Compute = Callable[..., Tensor]


def backends() -> list[Backend]:
    found: list[Backend] = [ReferenceBackend(), CpuBackend()]
    if usable:
        found += [NativeBackend(2, name) for name in instruction_sets()]
    return found


BACKENDS = backends()
NATIVE = [backend for backend in BACKENDS if isinstance(backend, NativeBackend)]


class Slots:
    """States of some sequences in pages that hold NaN, slots in random order and with a gap."""

    def __init__(self, arrays: Sequence[tuple[int, tuple[int, ...]]], rows: int) -> None:
        sizes = [4 * torch.Size(shape).numel() for count, shape in arrays for _ in range(count)]
        self.page_bytes = -(-max(sizes) * 3 // 2 // 64) * 64
        places = state_places(sizes, self.page_bytes)
        self.num_pages = places[-1][0] + 1
        total = rows * self.num_pages + 3
        self.pages = torch.full((total, self.page_bytes // 4), float("nan")).view(torch.uint8)
        order = random.Random(rows).sample(range(total), rows * self.num_pages)
        self.tables = torch.tensor(order, dtype=torch.int32).view(rows, self.num_pages)
        self.pages[self.tables.flatten().long()] = 0
        remaining = iter(places)
        self.cache = StateCache(
            self.pages,
            tuple(
                StatePlaces(shape, tuple(next(remaining) for _ in range(count)))
                for count, shape in arrays
            ),
        )

    def batch(self, rows: Sequence[int], starts: Sequence[int], lens: Sequence[int]) -> FlatBatch:
        ends = [start + count for start, count in zip(starts, lens, strict=True)]
        positions = [p for s, e in zip(starts, ends, strict=True) for p in range(s, e)]
        total = [sum(lens[:i]) for i in range(len(lens) + 1)]
        return FlatBatch(
            positions=torch.tensor(positions),
            slots=torch.zeros(0, dtype=torch.int64),
            block_tables=self.tables[list(rows)].contiguous(),
            query_starts=torch.tensor(total, dtype=torch.int32),
            context_lens=torch.tensor(ends, dtype=torch.int32),
            host_query_lens=tuple(lens),
            host_context_lens=tuple(ends),
        )


def delta_arrays(shape: DeltaNetShape) -> list[tuple[int, tuple[int, ...]]]:
    return [
        (1, (WIDTH - 1, shape.channels)),
        (shape.num_value_heads, (shape.key_dim, shape.value_dim)),
    ]


def delta_weights(shape: DeltaNetShape) -> DeltaNetWeights:
    heads = shape.num_value_heads
    return DeltaNetWeights(
        filters=torch.randn(WIDTH, shape.channels) * 0.5,
        rate=torch.rand(heads) * 2 + 0.01,
        decay_bias=torch.randn(heads) * 0.5,
        norm=1 + torch.randn(shape.value_dim) * 0.2,
    )


def delta_by_definition(
    qkv_gate: Tensor, beta_alpha: Tensor, weights: DeltaNetWeights, shape: DeltaNetShape
) -> Tensor:
    """Of one sequence, in float64."""
    qkv, gate = qkv_gate.double().split([shape.channels, shape.value_size], dim=1)
    padded = torch.cat([torch.zeros(WIDTH - 1, shape.channels, dtype=torch.float64), qkv])
    taps = [padded[i : i + len(qkv)] * weights.filters[i].double() for i in range(WIDTH)]
    q, k, v = F.silu(torch.stack(taps).sum(0)).split(
        [shape.key_size, shape.key_size, shape.value_size], dim=1
    )
    beta, alpha = beta_alpha.double().chunk(2, dim=1)
    decay = torch.exp(-weights.rate.double() * F.softplus(alpha + weights.decay_bias.double()))
    out = torch.zeros(len(qkv), shape.num_value_heads, shape.value_dim, dtype=torch.float64)
    repeats = shape.num_value_heads // shape.num_key_heads
    for head in range(shape.num_value_heads):
        own = head % shape.num_key_heads if shape.heads_in_turn else head // repeats
        here = slice(own * shape.key_dim, (own + 1) * shape.key_dim)
        state = torch.zeros(shape.key_dim, shape.value_dim, dtype=torch.float64)
        for t in range(len(qkv)):
            query, key = (x[t, here] / (x[t, here].square().sum() + 1e-6).sqrt() for x in (q, k))
            value = v[t, head * shape.value_dim : (head + 1) * shape.value_dim]
            state = state * decay[t, head]
            delta = (value - key @ state) * beta[t, head].sigmoid()
            state = state + key[:, None] * delta
            out[t, head] = query @ state / shape.key_dim**0.5
    norm = torch.rsqrt(out.square().mean(-1, keepdim=True) + shape.eps) * weights.norm.double()
    return (out * norm).flatten(1) * F.silu(gate)


@cache
def delta_case(
    shape: DeltaNetShape, dtype: torch.dtype
) -> tuple[DeltaNetWeights, list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Weights, sequences, one of them longer than a few chunks, and what is exact, once for all
    backends."""
    torch.manual_seed(0)
    weights = delta_weights(shape)
    size = shape.channels + shape.value_size
    given = [
        (torch.randn(n, size).to(dtype), torch.randn(n, 2 * shape.num_value_heads).to(dtype))
        for n in (200, 70, 9)
    ]
    return weights, given, [delta_by_definition(x, ba, weights, shape) for x, ba in given]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: f"{b.name} {b.numbers}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_delta_net(backend: Backend, shape: DeltaNetShape, dtype: torch.dtype) -> None:
    """Three sequences in pieces of any length."""
    weights, given, expected = delta_case(shape, dtype)
    for seed in range(3):
        slots = Slots(delta_arrays(shape), len(given))
        found = in_pieces(
            random.Random(seed),
            slots,
            given,
            lambda x, ba, batch, slots=slots: backend.recurrent.gated_delta_net(
                x, ba, weights, shape, batch, backend.recurrent.plan(batch), slots.cache
            ),
        )
        for mine, exact in zip(found, expected, strict=True):
            assert mine.dtype is dtype
            bound = 2e-5 if dtype is torch.float32 else 8e-3
            error = (mine.double() - exact).abs().max() / exact.abs().max()
            assert error < bound, error


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", NATIVE, ids=lambda b: str(b.numbers))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_bits_in_any_pieces(
    backend: Backend, shape: DeltaNetShape, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    weights = delta_weights(shape)
    kernels, size = backend.recurrent, shape.channels + shape.value_size
    given = [
        (torch.randn(n, size).to(dtype), torch.randn(n, 2 * shape.num_value_heads).to(dtype))
        for n in (150, 3, 66)
    ]
    check_bits_in_any_pieces(
        given,
        delta_arrays(shape),
        lambda x, ba, batch, cache: kernels.gated_delta_net(
            x, ba, weights, shape, batch, kernels.plan(batch), cache
        ),
    )


def check_bits_in_any_pieces(
    given: Sequence[tuple[Tensor, ...]],
    arrays: Sequence[tuple[int, tuple[int, ...]]],
    compute: Compute,
) -> None:
    """Alone and whole as in company and in pieces, and so are the states that are left."""

    def computed(rng: random.Random, which: Sequence[int], most: int) -> list[list[Tensor]]:
        slots = Slots(arrays, len(which))
        found = in_pieces(
            rng,
            slots,
            [given[index] for index in which],
            lambda *x: compute(*x, slots.cache),
            most,
        )
        states = [read_state(slots.cache, arrays, slots.tables) for arrays in slots.cache.arrays]
        return [[out, *(s[row] for s in states)] for row, out in enumerate(found)]

    alone = [computed(random.Random(0), [i], 1000)[0] for i in range(len(given))]
    together = computed(random.Random(2), range(len(given)), 130)
    for mine, other in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, other, strict=True))


def in_pieces(
    rng: random.Random,
    slots: Slots,
    given: Sequence[tuple[Tensor, ...]],
    compute: Compute,
    most: int = 130,
) -> list[Tensor]:
    """Each sequence's results, computed in steps of random rows of at most so many tokens; of more
    than there are: each in one row."""
    done = [0] * len(given)
    results: list[list[Tensor]] = [[] for _ in given]
    while any(n < len(x[0]) for n, x in zip(done, given, strict=True)):
        rows = [r for r in range(len(given)) if done[r] < len(given[r][0]) and rng.random() < 0.8]
        rng.shuffle(rows)
        if not rows:
            continue
        lens = [
            min(
                rng.choice([1, 1, 2, 3, rng.randint(1, most)]) if most < 500 else most,
                len(given[r][0]) - done[r],
            )
            for r in rows
        ]
        batch = slots.batch(rows, [done[r] for r in rows], lens)
        inputs = [
            torch.cat([given[r][i][done[r] : done[r] + n] for r, n in zip(rows, lens, strict=True)])
            for i in range(len(given[0]))
        ]
        out = compute(*inputs, batch)
        for r, part, n in zip(rows, out.split(lens), lens, strict=True):
            results[r].append(part.clone())
            done[r] += n
    return [torch.cat(parts) for parts in results]


def mamba2_arrays(shape: Mamba2Shape) -> list[tuple[int, tuple[int, ...]]]:
    return [
        (1, (WIDTH - 1, shape.channels)),
        (shape.num_heads, (shape.state_dim, shape.head_dim)),
    ]


def mamba2_weights(shape: Mamba2Shape) -> Mamba2Weights:
    return Mamba2Weights(
        filters=torch.randn(WIDTH, shape.channels) * 0.5,
        filter_bias=torch.randn(shape.channels) * 0.2 if shape.num_groups > 1 else None,
        rate=torch.rand(shape.num_heads) * 2 + 0.01,
        step_bias=torch.randn(shape.num_heads) * 0.5,
        skip=torch.randn(shape.num_heads),
        norm=1 + torch.randn(shape.size) * 0.2,
    )


def mamba2_by_definition(projected: Tensor, weights: Mamba2Weights, shape: Mamba2Shape) -> Tensor:
    """Of one sequence, in float64."""
    gate, mixed, step = projected.double().split(
        [shape.size, shape.channels, shape.num_heads], dim=1
    )
    padded = torch.cat([torch.zeros(WIDTH - 1, shape.channels, dtype=torch.float64), mixed])
    taps = [padded[i : i + len(mixed)] * weights.filters[i].double() for i in range(WIDTH)]
    total = torch.stack(taps).sum(0)
    if weights.filter_bias is not None:
        total = total + weights.filter_bias.double()
    of_groups = shape.num_groups * shape.state_dim
    x, b, c = F.silu(total).split([shape.size, of_groups, of_groups], dim=1)
    step = F.softplus(step + weights.step_bias.double()).clamp(shape.least_step, shape.most_step)
    out = torch.zeros_like(x)
    for head in range(shape.num_heads):
        here = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
        group = head * shape.num_groups // shape.num_heads
        of_group = slice(group * shape.state_dim, (group + 1) * shape.state_dim)
        state = torch.zeros(shape.state_dim, shape.head_dim, dtype=torch.float64)
        for t in range(len(x)):
            state = state * torch.exp(-weights.rate[head].double() * step[t, head])
            state = state + b[t, of_group, None] * (step[t, head] * x[t, here])
            out[t, here] = c[t, of_group] @ state + weights.skip[head].double() * x[t, here]
    grouped = (out * F.silu(gate)).unflatten(1, (shape.num_groups, -1))
    normed = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + shape.eps)
    return normed.flatten(1) * weights.norm.double()


def mamba2_inputs(
    shape: Mamba2Shape, lengths: Sequence[int], dtype: torch.dtype
) -> list[tuple[Tensor]]:
    size = shape.size + shape.channels + shape.num_heads
    return [(torch.randn(n, size).to(dtype),) for n in lengths]


@cache
def mamba2_case(
    shape: Mamba2Shape, dtype: torch.dtype
) -> tuple[Mamba2Weights, list[tuple[Tensor]], list[Tensor]]:
    """Weights, sequences, and what is exact, once for all backends."""
    torch.manual_seed(0)
    weights = mamba2_weights(shape)
    given = mamba2_inputs(shape, (150, 70, 9), dtype)
    return weights, given, [mamba2_by_definition(x, weights, shape) for (x,) in given]


@pytest.mark.parametrize("shape", MAMBA2_SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: f"{b.name} {b.numbers}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mamba2(backend: Backend, shape: Mamba2Shape, dtype: torch.dtype) -> None:
    weights, given, expected = mamba2_case(shape, dtype)
    kernels = backend.recurrent
    slots = Slots(mamba2_arrays(shape), len(given))
    found = in_pieces(
        random.Random(1),
        slots,
        given,
        lambda x, batch: kernels.mamba2(x, weights, shape, batch, kernels.plan(batch), slots.cache),
    )
    for mine, exact in zip(found, expected, strict=True):
        assert mine.dtype is dtype
        error = (mine.double() - exact).abs().max() / exact.abs().max()
        assert error < (2e-5 if dtype is torch.float32 else 8e-3), error


@pytest.mark.parametrize("shape", MAMBA2_SHAPES, ids=str)
@pytest.mark.parametrize("backend", NATIVE, ids=lambda b: str(b.numbers))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_bits_of_mamba2_in_any_pieces(
    backend: Backend, shape: Mamba2Shape, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    weights, kernels = mamba2_weights(shape), backend.recurrent
    check_bits_in_any_pieces(
        mamba2_inputs(shape, (150, 3, 66), dtype),
        mamba2_arrays(shape),
        lambda x, batch, cache: kernels.mamba2(
            x, weights, shape, batch, kernels.plan(batch), cache
        ),
    )


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [16, 40, 100])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: f"{b.name} {b.numbers}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_convolution(
    backend: Backend, size: int, bias: bool, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    filters = torch.randn(width, size)
    offset = torch.randn(size) if bias else None
    given = [(torch.randn(n, 3 * size).to(dtype),) for n in (50, 1, 2, 7)]
    slots = Slots([(1, (width - 1, size))], len(given))
    found = in_pieces(
        random.Random(1),
        slots,
        given,
        lambda x, batch: backend.recurrent.short_convolution(
            x, filters, offset, batch, backend.recurrent.plan(batch), slots.cache
        ),
    )
    for (x,), mine in zip(given, found, strict=True):
        first, second, third = x.double().chunk(3, dim=1)
        channels = F.pad((first * third).T, (width - 1, 0))[None]
        exact = F.conv1d(channels, filters.T.double()[:, None], groups=size)[0].T
        exact = second * (exact + (0 if offset is None else offset.double()))
        error = (mine.double() - exact).abs().max() / exact.abs().max()
        assert error < (1e-6 if dtype is torch.float32 else 8e-3)
