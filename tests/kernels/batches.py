"""Flat batches over paged caches whose unwritten memory is NaN, with what they should give."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loire.base.step import StepPlan, StepRow
from loire.execution.inputs import host_batch
from loire.kernels.interface import AttentionShape, FlatBatch, LayerCache
from loire.kernels.reference_transfers import ReferenceTransfers

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """A row's new tokens, and how many keys its last token sees."""

    query_len: int
    context_len: int


def blocks_for(rows: Sequence[Row], block_size: int, seed: int) -> tuple[list[list[int]], int]:
    """Shuffled block tables, and the size of a pool in which a few more are never used."""
    counts = [-(-row.context_len // block_size) for row in rows]
    total = sum(counts) + 3
    ids = list(range(total))
    random.Random(seed).shuffle(ids)
    return [[ids.pop() for _ in range(count)] for count in counts], total


def as_array(tables: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """int32 [R, M]; zeros past a row's own blocks."""
    array = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for row, table in enumerate(tables):
        array[row, : len(table)] = table
    return array


def make_batch(rows: Sequence[Row], tables: Sequence[Sequence[int]], block_size: int) -> FlatBatch:
    step_rows = tuple(
        StepRow(
            seq_id=index,
            token_ids=(0,) * row.query_len,
            start=row.context_len - row.query_len,
            samples=True,
        )
        for index, row in enumerate(rows)
    )
    host = host_batch(StepPlan(0, step_rows), as_array(tables), block_size, lambda _: 0)
    return ReferenceTransfers().upload(host, torch.zeros(1, dtype=torch.int64))[1]


def empty_cache(num_blocks: int, shape: AttentionShape, block_size: int, dtype: torch.dtype,
                device: torch.device = CPU) -> LayerCache:  # fmt: skip
    size = (num_blocks, shape.num_kv_heads, block_size, shape.head_dim)
    nan = float("nan")
    return LayerCache(
        torch.full(size, nan, dtype=dtype, device=device),
        torch.full(size, nan, dtype=dtype, device=device),
    )


@dataclass(frozen=True)
class AttentionCase:
    """Inputs of attend(), and each row's own keys and values [C, K, D] for the definition."""

    batch: FlatBatch
    cache: LayerCache
    queries: Tensor
    contexts: list[tuple[Tensor, Tensor]]


def attention_case(
    rows: Sequence[Row],
    shape: AttentionShape,
    *,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> AttentionCase:
    """Random queries, keys and values. The same seed gives a row the same numbers in any batch."""
    tables, num_blocks = blocks_for(rows, block_size, seed)
    cache = empty_cache(num_blocks, shape, block_size, dtype)
    contexts, queries = [], []
    for row, table in zip(rows, tables, strict=True):
        generator = torch.Generator().manual_seed(seed + 1000 * row.context_len + row.query_len)
        size = (row.context_len, shape.num_kv_heads, shape.head_dim)
        keys = torch.randn(size, generator=generator).to(dtype)
        values = torch.randn(size, generator=generator).to(dtype)
        contexts.append((keys, values))
        size = (row.query_len, shape.num_heads, shape.head_dim)
        queries.append((2 * torch.randn(size, generator=generator)).to(dtype))
        for position in range(row.context_len):
            block, slot = table[position // block_size], position % block_size
            cache.keys[block, :, slot] = keys[position]
            cache.values[block, :, slot] = values[position]
    batch = make_batch(rows, tables, block_size)
    return AttentionCase(batch, cache, torch.cat(queries), contexts)
