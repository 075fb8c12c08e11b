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
BLOCK_SIZE, ROPE_DIM, EPS = 16, 64, 1e-6
SHAPES = [
    AttentionShape(num_heads=20, num_kv_heads=1, head_dim=576, scale=0.06),
    AttentionShape(num_heads=128, num_kv_heads=1, head_dim=80, scale=0.1),
]
"""Of GLM-4.7-Flash, and as many heads as in DeepSeek-V3."""
ROWS = [Row(1, 300), Row(5, 40), Row(1, 1), Row(9, 9), Row(1, 33)]


@dataclass(frozen=True)
class Case:
    batch: FlatBatch
    latents: Tensor
    """[contexts one behind the other, D]: the latent, then the key."""
    queries: Tensor
    """[T, H, D], before the rotation."""
    weight: Tensor
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
    weight = 1 + torch.rand(dim - ROPE_DIM, generator=generator)
    return Case(batch, normal(contexts, dim), normal(num_tokens, heads, dim), weight, rotary)


def rotated(x: Tensor, rotary: RotaryTable, positions: Tensor) -> Tensor:
    """float64 [T, heads, D]."""
    cos, sin = (t[positions][:, None].double() for t in (rotary.cos, rotary.sin))
    first, second = x.double()[..., :ROPE_DIM].chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.cat([*turned, x.double()[..., ROPE_DIM:]], dim=-1)


def kept(given: Case, latents: Tensor, positions: Tensor) -> Tensor:
    """float64 [T, D]: what should be kept of tokens [T, D]."""
    latent, key = latents.double().split([len(given.weight), ROPE_DIM], dim=1)
    scale = (latent.square().mean(dim=1, keepdim=True) + EPS).rsqrt()
    key = rotated(key[:, None], given.rotary, positions)[:, 0]
    return torch.cat([key, latent * scale * given.weight.double()], dim=1)


def stored(
    kernels: Backend,
    given: Case,
    latents: Tensor,
    queries: Tensor,
    batch: FlatBatch,
    cache: LayerCache,
) -> Tensor:
    """Queries [T, H, D] as attention takes them."""
    # Rotated parts lie behind others, as they come out of a product.
    rows = torch.cat([queries[..., ROPE_DIM:].flatten(1), queries[..., :ROPE_DIM].flatten(1)], 1)
    turned = rows[:, -queries.shape[1] * ROPE_DIM :]
    found = kernels.attention.store_latents(
        latents, turned, given.weight, EPS, given.rotary, batch, cache
    )
    found[..., ROPE_DIM:] = queries[..., ROPE_DIM:]
    return found


def attended(kernels: Backend, shape: AttentionShape, given: Case, cache: LayerCache) -> Tensor:
    """[T, H * D], all contexts written first."""
    batch, first = given.batch, 0
    own = []
    for row, context in enumerate(batch.host_context_lens):
        latents = given.latents[first : first + context]
        where = torch.arange(context)
        slots = batch.block_tables[row][where // BLOCK_SIZE].long() * BLOCK_SIZE
        part = replace(batch, positions=where, slots=slots + where % BLOCK_SIZE)
        nothing = torch.zeros((context, 1, shape.head_dim), dtype=latents.dtype)
        stored(kernels, given, latents, nothing, part, cache)
        own.append(latents[context - batch.host_query_lens[row] :])
        first += context
    queries = stored(kernels, given, torch.cat(own), given.queries, batch, cache)
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
@pytest.mark.parametrize(("dtype", "kept_as"), CACHES)
def test_keys_are_read_as_values(
    name: str, shape: AttentionShape, dtype: torch.dtype, kept_as: torch.dtype
) -> None:
    kernels, given = select_backend(name, CPU, dtype), case(shape, dtype)
    cache = new_cache(kernels, shape, kept_as)
    found = attended(kernels, shape, given, cache)
    exact, first, token = [], 0, 0
    for row in ROWS:
        latents = given.latents[first : first + row.context_len]
        keys = kept(given, latents, torch.arange(row.context_len))
        for position in range(row.context_len - row.query_len, row.context_len):
            queries = given.queries[token : token + 1]
            queries = rotated(queries, given.rotary, torch.tensor([position]))[0]
            seen = keys[: position + 1]
            exact.append(torch.softmax(queries @ seen.T * shape.scale, dim=-1) @ seen)
            token += 1
        first += row.context_len
    tolerance = 0.03 if kept_as is torch.int8 else 4e-6 if dtype is torch.float32 else 0.02
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
        queries = given.queries[tokens]
        nothing = torch.zeros((query_len, shape.head_dim), dtype=dtype)
        turned = stored(kernels, given, nothing, queries, batch, spare)  # keys are there already
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
