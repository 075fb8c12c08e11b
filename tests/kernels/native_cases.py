"""What the tests of the native kernels share: backends, batches over a paged cache, comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from loire.kernels.interface import AttentionShape, FlatBatch, LayerCache
from loire.kernels.native.backend import NativeBackend, instruction_sets
from loire.kernels.quantization import quantize_vectors
from loire.kernels.reference_attention import store

usable, why = NativeBackend.available()
needs_library = pytest.mark.skipif(not usable, reason=why)
SETS = instruction_sets() if usable else ()
DTYPES = (torch.float32, torch.bfloat16)
CACHES = [
    pytest.param(dtype, kept, id=f"{dtype}-{kept}".replace("torch.", ""))
    for dtype in DTYPES
    for kept in (dtype, torch.int8)
]
"""The model's dtype and the KV cache's."""

_backends: dict[tuple[int, str], NativeBackend] = {}


def backend(num_threads: int = 2, instruction_set: str | None = None) -> NativeBackend:
    """A backend, kept from test to test."""
    key = (num_threads, instruction_set or SETS[0])
    if key not in _backends:
        _backends[key] = NativeBackend(*key)
    return _backends[key]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, NaN included."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.shape == b.shape and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def assert_close(found: Tensor, exact: Tensor, *, absolute: float) -> None:
    """found within one rounding of its dtype and an absolute error of the float64 value."""
    assert found.shape == exact.shape
    error = (found.double() - exact).abs()
    bound = exact.abs() * torch.finfo(found.dtype).eps * (4 if found.dtype == torch.float32 else 1)
    worst = (error - bound).max().item() if error.numel() else 0.0
    assert not error.isnan().any()
    assert worst <= absolute, f"error exceeds its bound by {worst - absolute:.3g}"


@dataclass(frozen=True, slots=True)
class Row:
    """Some consecutive tokens of a sequence."""

    query_len: int
    context_len: int


def make_batch(
    rows: Sequence[Row], block_size: int, num_blocks: int, generator: torch.Generator
) -> FlatBatch:
    """Rows over blocks drawn at random; entries past a row's context are 0."""
    needed = [-(-row.context_len // block_size) for row in rows]
    order = torch.randperm(num_blocks - 1, generator=generator)[: sum(needed)] + 1
    assert len(order) == sum(needed)
    tables = torch.zeros(len(rows), max(needed) + 1, dtype=torch.int32)
    taken = 0
    positions, slots = [], []
    for index, (row, count) in enumerate(zip(rows, needed, strict=True)):
        tables[index, :count] = order[taken : taken + count].int()
        taken += count
        where = torch.arange(row.context_len - row.query_len, row.context_len)
        positions.append(where)
        slots.append(tables[index][where // block_size].long() * block_size + where % block_size)
    lens = [row.query_len for row in rows]
    return FlatBatch(
        positions=torch.cat(positions),
        slots=torch.cat(slots),
        block_tables=tables,
        query_starts=torch.tensor([0, *lens]).cumsum(0).int(),
        context_lens=torch.tensor([row.context_len for row in rows], dtype=torch.int32),
        host_query_lens=tuple(lens),
        host_context_lens=tuple(row.context_len for row in rows),
    )


def empty_cache(
    num_blocks: int, shape: AttentionShape, block_size: int, dtype: torch.dtype
) -> LayerCache:
    """A cache full of NaN: whatever a row reads beside its context shows. int8 keeps codes."""
    size = (num_blocks, shape.num_kv_heads, block_size, shape.head_dim)
    nan = float("nan")
    if dtype is torch.int8:
        scales = torch.full((2, *size[:-1]), nan)
        codes = torch.full((2, *size), 93, dtype=dtype)
        return LayerCache(codes[0], codes[1], scales[0], scales[1])
    return LayerCache(torch.full(size, nan, dtype=dtype), torch.full(size, nan, dtype=dtype))


def write_context(
    cache: LayerCache, batch: FlatBatch, row: int, keys: Tensor, values: Tensor
) -> None:
    """Put keys and values [context, K, D] where the row's block table says."""
    size = cache.keys.shape[2]
    where = torch.arange(len(keys))
    slots = batch.block_tables[row].long()[where // size] * size + where % size
    store(cache.keys, cache.key_scales, slots, keys)
    store(cache.values, cache.value_scales, slots, values)


def as_kept(x: Tensor, cache_dtype: torch.dtype) -> Tensor:
    """What a cache of that dtype keeps of keys or values x [..., D]."""
    if cache_dtype is not torch.int8:
        return x
    codes, scales = quantize_vectors(x)
    return codes * scales[..., None]


def exact_attention(queries: Tensor, keys: Tensor, values: Tensor, shape: AttentionShape) -> Tensor:
    """float64 [Q, H * D]: the last Q positions of a context [C, K, D], by the definition."""
    q, context = queries.shape[0], keys.shape[0]
    group = shape.num_heads // shape.num_kv_heads
    wide_keys = keys.double().repeat_interleave(group, dim=1)
    wide_values = values.double().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,chd->hqc", queries.double(), wide_keys) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    position = torch.arange(context - q, context)[:, None]
    key = torch.arange(context)[None]
    hidden = key > position
    if shape.window is not None:
        hidden |= key <= position - shape.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if shape.sinks is not None:
        sinks = shape.sinks.double()[:, None, None].expand(-1, q, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., :context]
    return torch.einsum("hqc,chd->qhd", weights, wide_values).flatten(1)
