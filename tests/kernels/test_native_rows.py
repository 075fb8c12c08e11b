"""RMSNorm, rotary embedding: what goes row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    DTYPES,
    SETS,
    Row,
    assert_close,
    backend,
    empty_cache,
    make_batch,
    needs_library,
    same_bits,
)
from torch import Tensor

from loire.base.errors import EngineError
from loire.kernels.interface import AttentionShape, HeadNorms, LayerCache, RotaryTable
from loire.kernels.quantization import quantize_vectors

pytestmark = needs_library


def random(*size: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*size, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 40), size=st.integers(1, 300))
def test_norms(dtype: torch.dtype, instruction_set: str, tokens: int, size: int) -> None:
    kernels = backend(2, instruction_set)
    x = random(tokens, size, dtype=dtype)
    weight = random(size, dtype=torch.float32, seed=1)
    assert_close(
        kernels.pointwise.rms_norm(x, weight, 1e-5), exact_norm(x, weight, 1e-5), absolute=1e-5
    )
    residual = random(tokens, size, dtype=torch.float32, seed=2)
    total = x.float() + residual
    normed, added = kernels.pointwise.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    assert normed.dtype == dtype
    assert same_bits(added, total)
    assert_close(normed, exact_norm(total, weight, 1e-5), absolute=1e-5)


def rotary_case(
    shape: AttentionShape, half: int, dtype: torch.dtype, *, seed: int = 0
) -> tuple[Tensor, RotaryTable]:
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    angles = torch.arange(600)[:, None] * torch.rand(half, generator=torch.manual_seed(seed))
    return random(40, width, dtype=dtype, seed=seed), RotaryTable(angles.cos(), angles.sin())


ROWS = [Row(1, 37), Row(30, 30), Row(8, 50), Row(1, 511)]


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize(
    ("dim", "half"), [(64, 32), (80, 40), (96, 16), (16, 8), (34, 6), (256, 128)]
)
def test_rotates_and_stores(
    dtype: torch.dtype, instruction_set: str, with_norms: bool, dim: int, half: int
) -> None:
    shape = AttentionShape(num_heads=6, num_kv_heads=2, head_dim=dim, scale=1.0)
    qkv, rotary = rotary_case(shape, half, dtype)
    batch = make_batch(ROWS, 16, 60, torch.Generator().manual_seed(1))
    cache = empty_cache(60, shape, 16, dtype)
    norms = None
    if with_norms:
        norms = HeadNorms(
            random(dim, dtype=torch.float32, seed=3), random(dim, dtype=torch.float32, seed=4), 1e-6
        )
    queries = backend(2, instruction_set).attention.rotate_and_store(
        qkv.clone(), shape, norms, rotary, batch, cache
    )

    heads = qkv.view(40, 10, dim)
    cos = rotary.cos[batch.positions].double()[:, None]
    sin = rotary.sin[batch.positions].double()[:, None]

    def expected(part: Tensor, weight: Tensor | None) -> Tensor:
        x = part.double() if weight is None else exact_norm(part, weight, 1e-6)
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)

    assert_close(queries, expected(heads[:, :6], norms and norms.query_weight), absolute=2e-6)
    stored = cache.keys[batch.slots // 16, :, batch.slots % 16]
    assert_close(stored, expected(heads[:, 6:8], norms and norms.key_weight), absolute=2e-6)
    assert same_bits(cache.values[batch.slots // 16, :, batch.slots % 16], heads[:, 8:])
    # Nothing else was written.
    assert (~cache.keys.isnan()).sum() == (~cache.values.isnan()).sum() == 40 * 2 * dim


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "half"), [(64, 32), (34, 6), (256, 128)])
def test_stores_codes(dtype: torch.dtype, instruction_set: str, dim: int, half: int) -> None:
    """The codes are those of what a plain cache keeps, made as the definition makes them."""
    shape = AttentionShape(num_heads=6, num_kv_heads=2, head_dim=dim, scale=1.0)
    qkv, rotary = rotary_case(shape, half, dtype)
    qkv[3] = 0
    qkv[5, 6 * dim] = float("inf")
    batch = make_batch(ROWS, 16, 60, torch.Generator().manual_seed(1))
    kernels = backend(2, instruction_set)
    plain, codes = empty_cache(60, shape, 16, dtype), empty_cache(60, shape, 16, torch.int8)
    queries = kernels.attention.rotate_and_store(qkv.clone(), shape, None, rotary, batch, plain)
    assert same_bits(
        kernels.attention.rotate_and_store(qkv.clone(), shape, None, rotary, batch, codes), queries
    )
    where = (batch.slots // 16, slice(None), batch.slots % 16)
    assert codes.key_scales is not None
    assert codes.value_scales is not None
    assert codes.key_scales[where][5, 0].isnan(), "one of its elements is not finite"
    for exact, kept, scales in (
        (plain.keys, codes.keys, codes.key_scales),
        (plain.values, codes.values, codes.value_scales),
    ):
        expected, expected_scales = quantize_vectors(exact[where])
        sane = expected_scales.isfinite()
        assert torch.equal(kept[where][sane], expected[sane])
        assert torch.allclose(scales[where], expected_scales, rtol=1e-6, equal_nan=True)
        untouched = torch.ones(60, 16, dtype=torch.bool)
        untouched[batch.slots // 16, batch.slots % 16] = False
        assert scales.transpose(1, 2)[untouched].isnan().all()
        assert (kept.transpose(1, 2)[untouched] == 93).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    shape = AttentionShape(num_heads=6, num_kv_heads=2, head_dim=80, scale=1.0)
    qkv, rotary = rotary_case(shape, 40, dtype)
    weight = random(qkv.shape[1], dtype=torch.float32, seed=1)
    residual = random(*qkv.shape, dtype=torch.float32, seed=2)

    def outputs(first: int, last: int, threads: int) -> list[Tensor]:
        kernels, rows = backend(threads), slice(first, last)
        batch = make_batch([Row(last - first, last)], 8, 9, torch.Generator().manual_seed(first))
        cache = empty_cache(9, shape, 8, dtype)
        queries = kernels.attention.rotate_and_store(
            qkv[rows].clone(), shape, None, rotary, batch, cache
        )
        return [
            queries,
            cache.keys[batch.slots // 8, :, batch.slots % 8],
            kernels.pointwise.rms_norm(qkv[rows], weight, 1e-5),
            *kernels.pointwise.add_rms_norm(
                qkv[rows].clone(), residual[rows].clone(), weight, 1e-5
            ),
        ]

    whole = outputs(0, 40, 1)
    for threads in (1, 2, 3):
        for first, last in ((0, 40), (0, 1), (5, 6), (3, 20), (39, 40)):
            for part, all_rows in zip(outputs(first, last, threads), whole, strict=True):
                assert same_bits(part, all_rows[first:last])


@pytest.mark.parametrize("bad", [-1, 50])
def test_refuses_tokens_outside(bad: int) -> None:
    table = random(50, 16, dtype=torch.float32)
    with pytest.raises(EngineError, match=f"token id {bad} is not below 50"):
        backend().pointwise.embed(torch.tensor([1, bad]), table, 1.0, torch.ones(16), 1e-5)


def test_refuses_slots_and_positions_outside() -> None:
    shape = AttentionShape(num_heads=1, num_kv_heads=1, head_dim=16, scale=1.0)
    qkv, rotary = rotary_case(shape, 8, torch.float32)
    batch = make_batch(ROWS, 16, 60, torch.Generator().manual_seed(1))
    cache = empty_cache(60, shape, 16, torch.float32)
    short = RotaryTable(rotary.cos[:400], rotary.sin[:400])
    with pytest.raises(EngineError, match="position 510 is not below 400"):
        backend().attention.rotate_and_store(qkv, shape, None, short, batch, cache)
    highest = int(batch.slots.max())
    small = LayerCache(cache.keys[: highest // 16], cache.values[: highest // 16])
    with pytest.raises(EngineError, match=rf"slot \d+ is not below {highest // 16 * 16}"):
        backend().attention.rotate_and_store(qkv, shape, None, rotary, batch, small)
