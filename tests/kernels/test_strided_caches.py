"""Caches whose blocks lie apart, as views of one pool of pages that several layers share."""

from dataclasses import dataclass

import pytest
import torch
from native_cases import Row, backend, make_batch, needs_library
from torch import Tensor

from loire.kernels.interface import AttentionShape, Backend, FlatBatch, LayerCache, RotaryTable
from loire.kernels.reference import ReferenceBackend
from loire.kernels.select import available_backends, select_backend

BACKENDS = [info.name for info in available_backends() if info.usable]
CPU = torch.device("cpu")
ROWS = [Row(1, 600), Row(1, 33), Row(40, 600), Row(7, 7), Row(1, 601), Row(1, 90)]
SHAPES = {
    "plain": AttentionShape(num_heads=6, num_kv_heads=2, head_dim=32, scale=0.2),
    "window": AttentionShape(num_heads=2, num_kv_heads=1, head_dim=64, scale=0.2, window=70),
    "softcap": AttentionShape(num_heads=3, num_kv_heads=3, head_dim=16, scale=0.2, softcap=4.0),
}


@dataclass(frozen=True)
class Page:
    """How a pool of pages holds a layer: bytes before it, and bytes of other things behind it."""

    before: int
    behind: int


PAGES = [Page(0, 0), Page(4096, 32), Page(64, 28)]
"""The last one is no multiple of anything that a block consists of."""


def layer_in_pool(
    num_blocks: int, shape: AttentionShape, block_size: int, dtype: torch.dtype, page: Page
) -> LayerCache:
    """A layer as the kernels lay it into a page; all else is 0xff."""
    sizes = (shape.num_kv_heads, block_size, shape.head_dim, dtype)
    attention = ReferenceBackend().attention
    num_bytes = attention.layer_bytes(*sizes)
    page_bytes = page.before + num_bytes + page.behind
    pool = torch.full((num_blocks, page_bytes), 0xFF, dtype=torch.uint8)
    cache = attention.layer_cache(pool, page.before, *sizes)
    with pytest.raises(ValueError, match=f"{num_bytes} bytes of a layer at {page.before + 64}"):
        attention.layer_cache(pool, page.before + 64, *sizes)
    return cache


def dense_layer(
    num_blocks: int, shape: AttentionShape, block_size: int, dtype: torch.dtype
) -> LayerCache:
    """The same, each tensor on memory of its own."""
    cache = layer_in_pool(num_blocks, shape, block_size, dtype, Page(0, 0))
    parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    return LayerCache(*(None if part is None else part.contiguous() for part in parts))  # type: ignore[arg-type]


def filled_and_read(
    kernels: Backend, cache: LayerCache, batch: FlatBatch, shape: AttentionShape, dtype: torch.dtype
) -> list[Tensor]:
    """Write all contexts through rotate_and_store, then attend: queries, results and the cache."""
    block_size = cache.keys.shape[2]
    width = shape.num_heads + 2 * shape.num_kv_heads
    angles = torch.arange(700.0)[:, None] * torch.rand(shape.head_dim // 2)
    rotary = RotaryTable(angles.cos(), angles.sin())
    for row, context in enumerate(batch.host_context_lens):
        where = torch.arange(context)
        table = batch.block_tables[row].long()
        whole = FlatBatch(
            where,
            table[where // block_size] * block_size + where % block_size,
            batch.block_tables[row : row + 1],
            torch.tensor([0, context], dtype=torch.int32),
            torch.tensor([context], dtype=torch.int32),
            (context,),
            (context,),
        )
        qkv = torch.randn(context, width * shape.head_dim).to(dtype)
        kernels.attention.rotate_and_store(qkv, shape, None, rotary, whole, cache)
    num_tokens = sum(batch.host_query_lens)
    qkv = torch.randn(num_tokens, width * shape.head_dim).to(dtype)
    queries = kernels.attention.rotate_and_store(qkv, shape, None, rotary, batch, cache)
    plan = kernels.attention.plan(batch, block_size)
    found = kernels.attention.attend(queries, cache, plan, shape)
    slots = batch.slots
    kept = cache.keys[slots // block_size, :, slots % block_size]
    return [queries, found, kept]


@pytest.mark.parametrize("block_size", [16, 48, 80, 512])
@pytest.mark.parametrize("variant", SHAPES)
@pytest.mark.parametrize("kept", ["plain", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_pages_give_the_same_bits_as_tensors_of_their_own(
    name: str, dtype: torch.dtype, kept: str, variant: str, block_size: int
) -> None:
    shape = SHAPES[variant]
    kernels = backend() if name == "native" else select_backend(name, CPU, dtype)
    cache_dtype = torch.int8 if kept == "int8" else dtype
    num_blocks = sum(-(-row.context_len // block_size) for row in ROWS) + 3
    batch = make_batch(ROWS, block_size, num_blocks, torch.Generator().manual_seed(1))
    dense = dense_layer(num_blocks, shape, block_size, cache_dtype)
    torch.manual_seed(2)
    expected = filled_and_read(kernels, dense, batch, shape, dtype)
    for page in PAGES:
        in_pool = layer_in_pool(num_blocks, shape, block_size, cache_dtype, page)
        torch.manual_seed(2)
        found = filled_and_read(kernels, in_pool, batch, shape, dtype)
        for got, wanted in zip(found, expected, strict=True):
            assert not got.float().isnan().any()
            assert torch.equal(got, wanted), page


@needs_library
@pytest.mark.parametrize("block_size", [16, 48, 80, 320])
def test_a_shared_prefix_gives_the_same_bits_in_blocks_of_any_size(block_size: int) -> None:
    """Splits of the keys that begin or end within a block are shared where all of it is."""
    shape, context, rows = SHAPES["plain"], 900, 5
    num_shared = 800 // block_size
    per_row = -(-context // block_size)
    num_blocks = 1 + num_shared + rows * (per_row - num_shared)
    own = torch.arange(1 + num_shared, num_blocks, dtype=torch.int32).view(rows, -1)
    tables = torch.cat(
        [torch.arange(1, 1 + num_shared, dtype=torch.int32).expand(rows, -1), own], dim=1
    ).contiguous()
    cache = dense_layer(num_blocks, shape, block_size, torch.bfloat16)
    torch.manual_seed(3)
    cache.keys.copy_(torch.randn(cache.keys.shape))
    cache.values.copy_(torch.randn(cache.values.shape))
    queries = torch.randn(rows, shape.num_heads, shape.head_dim).bfloat16()

    def attend(members: list[int]) -> Tensor:
        count = len(members)
        lens = torch.full((count,), context, dtype=torch.int32)
        batch = FlatBatch(
            torch.full((count,), context - 1),
            torch.zeros(count, dtype=torch.int64),
            tables[members].contiguous(),
            torch.arange(count + 1, dtype=torch.int32),
            lens,
            (1,) * count,
            (context,) * count,
        )
        kernels = backend()
        plan = kernels.attention.plan(batch, block_size)
        return kernels.attention.attend(queries[members], cache, plan, shape)

    together = attend(list(range(rows)))
    for row in range(rows):
        assert torch.equal(attend([row])[0], together[row])


@needs_library
def test_blocks_with_gaps_within_are_refused() -> None:
    shape, size = SHAPES["plain"], 16
    wide = torch.zeros(4, 2, size, 2 * shape.head_dim)
    batch = make_batch([Row(1, 20)], size, 4, torch.Generator().manual_seed(1))
    plan = backend().attention.plan(batch, size)
    queries = torch.zeros(1, shape.num_heads, shape.head_dim)
    gaps = wide[..., : shape.head_dim]
    with pytest.raises(ValueError, match=r"without gaps.*\(2048, 1024, 64, 1\)"):
        backend().attention.attend(queries, LayerCache(gaps, gaps), plan, shape)
    even = torch.zeros(4, 2, size, shape.head_dim)
    apart = torch.zeros(8, 2, size, shape.head_dim)[::2]
    with pytest.raises(ValueError, match="equally far apart"):
        backend().attention.attend(queries, LayerCache(even, apart), plan, shape)
    codes = torch.zeros(4, 2, size, shape.head_dim, dtype=torch.int8)
    scales = torch.zeros(4, 2, size)
    with pytest.raises(ValueError, match="scales"):
        backend().attention.attend(
            queries, LayerCache(codes, codes, scales, torch.zeros(8, 2, size)[::2]), plan, shape
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_layers_of_a_page_do_not_overlap(dtype: torch.dtype) -> None:
    """Two layers with blocks of different sizes fill their pages side by side."""
    attention = ReferenceBackend().attention
    sizes = [(2, 16, 32), (1, 80, 64)]
    bytes_of = [attention.layer_bytes(*size, dtype) for size in sizes]
    pages = torch.zeros(3, sum(bytes_of), dtype=torch.uint8)
    for index, size in enumerate(sizes):
        cache = attention.layer_cache(pages, sum(bytes_of[:index]), *size, dtype)
        assert cache.keys.shape == (3, *size)
        assert (cache.key_scales is None) == (dtype is not torch.int8)
        for part in (cache.keys, cache.values, cache.key_scales, cache.value_scales):
            if part is not None:
                assert not part.any(), "nobody else has written there"
                part.fill_(1)
    assert pages.flatten().count_nonzero() > 0
