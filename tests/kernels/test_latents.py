"""Latent attention's operations: a cache whose values are its keys, and products of heads."""

from dataclasses import dataclass, replace

import pytest
import torch
from native_cases import CACHES, DTYPES, Row, backend, make_batch, needs_library, same_bits
from torch import Tensor

from loire.kernels.interface import AttentionShape, Backend, FlatBatch, LayerCache, RotaryTable
from loire.kernels.select import available_backends, select_backend

CPU = torch.device("cpu")
BACKENDS = [info.name for info in available_backends() if info.usable]
BLOCK_SIZE, ROPE_DIM = 16, 64
SHAPES = [
    AttentionShape(num_heads=20, num_kv_heads=1, head_dim=576, scale=0.06, is_latent=True),
    AttentionShape(num_heads=128, num_kv_heads=1, head_dim=80, scale=0.1, is_latent=True),
]
"""Of GLM-4.7-Flash, and as many heads as in DeepSeek-V3."""
ROWS = [Row(1, 300), Row(5, 40), Row(1, 1), Row(9, 9), Row(1, 33)]


@dataclass(frozen=True)
class Case:
    batch: FlatBatch
    kept: Tensor
    """[contexts one behind the other, D], before the rotation."""
    queries: Tensor
    """[T, H, D], before it."""
    rotary: RotaryTable


def case(shape: AttentionShape, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(ROWS, BLOCK_SIZE, 64, generator)
    num_tokens, contexts = sum(r.query_len for r in ROWS), sum(r.context_len for r in ROWS)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    angles = torch.arange(320.0)[:, None] * torch.rand(ROPE_DIM // 2, generator=generator)
    rotary = RotaryTable(angles.cos(), angles.sin())
    heads, dim = shape.num_heads, shape.head_dim
    return Case(batch, normal(contexts, dim), normal(num_tokens, heads, dim), rotary)


def rotated(x: Tensor, rotary: RotaryTable, positions: Tensor) -> Tensor:
    """float64 [T, heads, D]."""
    cos, sin = (t[positions][:, None].double() for t in (rotary.cos, rotary.sin))
    first, second = x.double()[..., :ROPE_DIM].chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.cat([*turned, x.double()[..., ROPE_DIM:]], dim=-1)


def attended(kernels: Backend, shape: AttentionShape, given: Case, cache: LayerCache) -> Tensor:
    """[T, H * D], all contexts written first."""
    batch, width = given.batch, shape.num_heads + 1

    def store(heads: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
        part = replace(batch, positions=positions, slots=slots)
        return kernels.attention.rotate_and_store(
            heads.flatten(1), shape, None, given.rotary, part, cache
        )

    first = 0
    own = []
    for row, context in enumerate(batch.host_context_lens):
        keys = given.kept[first : first + context]
        where = torch.arange(context)
        slots = batch.block_tables[row][where // BLOCK_SIZE].long() * BLOCK_SIZE
        both = keys[:, None].repeat(1, width, 1)
        store(both, where, slots + where % BLOCK_SIZE)
        own.append(keys[context - batch.host_query_lens[row] :])
        first += context
    both = torch.cat([given.queries, torch.cat(own)[:, None]], dim=1)
    queries = store(both, batch.positions, batch.slots)
    plan = kernels.attention.plan(batch, BLOCK_SIZE)
    return kernels.attention.attend(queries, cache, plan, shape)


def new_cache(
    kernels: Backend, shape: AttentionShape, kept: torch.dtype, *, behind: int = 64
) -> LayerCache:
    sizes = (1, BLOCK_SIZE, shape.head_dim, kept)
    num_bytes = kernels.attention.layer_bytes(*sizes, is_latent=True)
    # Half of what keys and values would take.
    assert 2 * num_bytes <= kernels.attention.layer_bytes(*sizes) + 64
    pages = torch.full((64, num_bytes + behind), 0xFF, dtype=torch.uint8)
    return kernels.attention.layer_cache(pages, 0, *sizes, is_latent=True)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=("large", "many"))
@pytest.mark.parametrize(("dtype", "kept"), CACHES)
def test_keys_are_read_as_values(
    name: str, shape: AttentionShape, dtype: torch.dtype, kept: torch.dtype
) -> None:
    kernels, given = select_backend(name, CPU, dtype), case(shape, dtype)
    cache = new_cache(kernels, shape, kept)
    found = attended(kernels, shape, given, cache)
    exact, first, token = [], 0, 0
    for row in ROWS:
        keys = given.kept[first : first + row.context_len, None]
        keys = rotated(keys, given.rotary, torch.arange(row.context_len))[:, 0]
        for position in range(row.context_len - row.query_len, row.context_len):
            queries = given.queries[token : token + 1]
            queries = rotated(queries, given.rotary, torch.tensor([position]))[0]
            seen = keys[: position + 1]
            exact.append(torch.softmax(queries @ seen.T * shape.scale, dim=-1) @ seen)
            token += 1
        first += row.context_len
    tolerance = 0.03 if kept is torch.int8 else 2e-6 if dtype is torch.float32 else 0.02
    expected = torch.stack(exact).flatten(1)
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_alone(dtype: torch.dtype) -> None:
    shape, kernels = SHAPES[0], backend()
    given = case(shape, dtype)
    cache = new_cache(kernels, shape, dtype)
    together = attended(kernels, shape, given, cache)
    queries = torch.cat([given.queries, given.queries[:, :1]], dim=1)  # keys are there already
    first = 0
    for row, query_len in enumerate(given.batch.host_query_lens):
        tokens = slice(first, first + query_len)
        batch = FlatBatch(
            positions=given.batch.positions[tokens],
            slots=given.batch.slots[tokens],
            block_tables=given.batch.block_tables[row : row + 1],
            query_starts=torch.tensor([0, query_len], dtype=torch.int32),
            context_lens=given.batch.context_lens[row : row + 1],
            host_query_lens=(query_len,),
            host_context_lens=(given.batch.host_context_lens[row],),
        )
        spare = new_cache(kernels, shape, dtype)
        turned = kernels.attention.rotate_and_store(
            queries[tokens].flatten(1), shape, None, given.rotary, batch, spare
        )
        plan = kernels.attention.plan(batch, BLOCK_SIZE)
        assert same_bits(kernels.attention.attend(turned, cache, plan, shape), together[tokens])
        first += query_len


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 7, 70])
def test_heads_have_products_of_their_own(name: str, dtype: torch.dtype, num_tokens: int) -> None:
    kernels = select_backend(name, CPU, dtype)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn((5, 40, 28), generator=generator).to(dtype)
    heads = kernels.linear.heads([kernels.linear.pack(weight) for weight in weights])
    # Both lie among other things, as parts of larger results.
    whole = torch.randn((num_tokens, 5, 36), generator=generator).to(dtype)
    x, room = whole[..., 8:], torch.full((num_tokens, 6, 48), float("nan"), dtype=dtype)
    heads(x, room[:, :5, 4:44])
    exact = torch.einsum("thi,hoi->tho", x.double(), weights.double())
    tolerance = 1e-5 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(
        room[:, :5, 4:44].double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max())
    )
    assert room[:, 5].isnan().all()
    assert room[:, :5, :4].isnan().all()
    assert room[:, :5, 44:].isnan().all()
    if name == "native":
        alone = torch.empty((1, 5, 40), dtype=dtype)
        heads(x[-1:], alone)
        assert same_bits(alone, room[-1:, :5, 4:44])
        with pytest.raises(ValueError, match="5 heads from 28 to 40"):
            heads(whole, room[:, :5, 4:44])
