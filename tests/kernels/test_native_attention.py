import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    CACHES,
    SETS,
    Row,
    as_kept,
    assert_close,
    backend,
    empty_cache,
    exact_attention,
    make_batch,
    needs_library,
    same_bits,
    write_context,
)
from torch import Tensor

from loire.base.errors import EngineError
from loire.kernels.interface import AttentionShape

pytestmark = needs_library


def random(*size: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attend(
    rows: list[Row],
    contexts: list[tuple[Tensor, Tensor, Tensor]],
    shape: AttentionShape,
    block_size: int = 16,
    threads: int = 2,
    instruction_set: str | None = None,
    seed: int = 0,
    kept: torch.dtype | None = None,
) -> list[Tensor]:
    """Results per row, for sequences of queries [C, H, D], keys and values [C, K, D]."""
    dtype = contexts[0][0].dtype
    num_blocks = sum(-(-row.context_len // block_size) for row in rows) + 3
    batch = make_batch(rows, block_size, num_blocks, torch.Generator().manual_seed(seed))
    cache = empty_cache(num_blocks, shape, block_size, kept or dtype)
    queries = []
    for index, (row, (q, k, v)) in enumerate(zip(rows, contexts, strict=True)):
        write_context(cache, batch, index, k[: row.context_len], v[: row.context_len])
        queries.append(q[row.context_len - row.query_len : row.context_len])
    kernels = backend(threads, instruction_set)
    plan = kernels.attention.plan(batch, block_size)
    found = kernels.attention.attend(torch.cat(queries), cache, plan, shape)
    assert same_bits(kernels.attention.attend(torch.cat(queries), cache, plan, shape), found)
    return list(found.split(batch.host_query_lens))


def sequences(
    lengths: list[int], shape: AttentionShape, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        (
            random(length, shape.num_heads, shape.head_dim, dtype=dtype, seed=3 * i),
            random(length, shape.num_kv_heads, shape.head_dim, dtype=dtype, seed=3 * i + 1),
            random(length, shape.num_kv_heads, shape.head_dim, dtype=dtype, seed=3 * i + 2),
        )
        for i, length in enumerate(lengths)
    ]


def sinks_of(heads: int) -> Tensor:
    """Of several sizes: some take nearly all, some nearly nothing."""
    return torch.linspace(-4.0, 5.0, heads)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Row], AttentionShape, int]:
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        context = draw(st.integers(1, 700))
        rows.append(Row(draw(st.integers(1, min(context, 90))), context))
    kv_heads, group = draw(st.sampled_from(((1, 1), (3, 3), (2, 4), (4, 1), (1, 7), (2, 9))))
    shape = AttentionShape(
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((16, 34, 64, 80, 96, 128, 256))),
        scale=draw(st.sampled_from((0.05, 0.125, 0.5))),
        window=draw(st.sampled_from((None, None, 1, 20, 300))),
        softcap=draw(st.sampled_from((None, None, 5.0))),
        sinks=draw(st.sampled_from((None, sinks_of(kv_heads * group)))),
    )
    return rows, shape, draw(st.sampled_from((8, 16, 32, 64, 128)))


@pytest.mark.parametrize(("dtype", "kept"), CACHES)
@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_equals_the_definition(
    dtype: torch.dtype,
    kept: torch.dtype,
    case: tuple[list[Row], AttentionShape, int],
) -> None:
    rows, shape, block_size = case
    contexts = sequences([row.context_len for row in rows], shape, dtype)
    results = [attend(rows, contexts, shape, block_size, 2, name, kept=kept) for name in SETS]
    for row, (q, given_k, given_v), *found in zip(rows, contexts, *results, strict=True):
        k, v = as_kept(given_k, kept), as_kept(given_v, kept)
        exact = exact_attention(q[row.context_len - row.query_len :], k, v, shape)
        # Scores of about scale * sqrt(D) each carry a relative error into the exponential.
        absolute = 2e-5 * max(1.0, shape.scale * shape.head_dim**0.5)
        if dtype == torch.bfloat16:  # each weight is rounded
            weighed = exact_attention(q[row.context_len - row.query_len :], k, v.abs(), shape)
            absolute += torch.finfo(dtype).eps * weighed.max().item()
        for of_a_set in found:
            assert_close(of_a_set, exact, absolute=absolute)


SHAPE = AttentionShape(num_heads=6, num_kv_heads=2, head_dim=64, scale=0.125)
VARIANTS = {
    "plain": SHAPE,
    "window": dataclasses.replace(SHAPE, window=100),
    "softcap": dataclasses.replace(SHAPE, softcap=3.0),
    "sinks": dataclasses.replace(SHAPE, window=300, sinks=sinks_of(6)),
    "wide heads": dataclasses.replace(SHAPE, num_heads=2, head_dim=256),
}


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(("dtype", "kept"), CACHES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_has_the_same_bits_in_any_company(
    dtype: torch.dtype, kept: torch.dtype, instruction_set: str, variant: str
) -> None:
    """Whole prefill = chunks = one by one = in a batch = other blocks = other threads."""
    shape, length = VARIANTS[variant], 600
    sequence = sequences([length], shape, dtype)[0]
    whole = attend([Row(length, length)], [sequence], shape, 16, 1, instruction_set, kept=kept)[0]

    # All pairs of threads, sizes of chunks and their ends.
    for threads in (1, 2, 3):
        for index, size in enumerate((1, 7, 64, 250)):
            end = (size, 300, length)[(index + threads) % 3]
            row = Row(min(size, end), end)
            found = attend(
                [row], [sequence], shape, 8, threads, instruction_set, seed=size, kept=kept
            )[0]
            assert same_bits(found, whole[end - row.query_len : end])

    others = sequences([40, 513, 260], shape, dtype)
    rows = [Row(1, 40), Row(1, length), Row(513, 513), Row(17, 290), Row(1, 257), Row(1, 260)]
    contexts = [others[0], sequence, others[1], sequence, sequence, others[2]]
    for block_size, threads in ((16, 1), (32, 2), (128, 3)):
        results = attend(rows, contexts, shape, block_size, threads, instruction_set, kept=kept)
        for index in (1, 3, 4):
            first = rows[index].context_len - rows[index].query_len
            assert same_bits(results[index], whole[first : rows[index].context_len])


@pytest.mark.parametrize(("dtype", "kept"), CACHES)
def test_nan_of_a_row_reaches_its_own_result_only(dtype: torch.dtype, kept: torch.dtype) -> None:
    contexts = sequences([50, 50, 50], SHAPE, dtype)
    rows = [Row(4, 50)] * 3
    clean = attend(rows, contexts, SHAPE, kept=kept)
    contexts[1][1][20] = float("nan")
    found = attend(rows, contexts, SHAPE, kept=kept)
    assert found[1].isnan().all()
    assert same_bits(found[0], clean[0])
    assert same_bits(found[2], clean[2])
    contexts = sequences([50, 50, 50], SHAPE, dtype)
    contexts[1][0][49] = float("nan")  # one query of the row
    found = attend(rows, contexts, SHAPE, kept=kept)
    assert found[1][3].isnan().all()
    assert same_bits(found[1][:3], clean[1][:3])


def test_scores_far_apart() -> None:
    sequence = sequences([600], SHAPE, torch.float32)[0]
    shape = dataclasses.replace(SHAPE, scale=300.0)
    found = attend([Row(600, 600)], [sequence], shape)[0]
    # Scores of thousands: their rounding decides, so only single winners are sure.
    exact = exact_attention(*sequence, shape)
    assert found.isfinite().all()
    assert ((found.double() - exact).abs() < 0.05).float().mean() > 0.99


def test_refuses_tables_that_do_not_fit() -> None:
    batch = make_batch([Row(1, 40)], 16, 9, torch.Generator().manual_seed(0))
    long = dataclasses.replace(batch, context_lens=torch.tensor([65], dtype=torch.int32))
    with pytest.raises(EngineError, match="context of 65 tokens, but its block table holds 64"):
        backend().attention.plan(long, 16)
    plan = backend().attention.plan(batch, 16)
    highest = int(batch.block_tables.max())
    cache = empty_cache(highest, SHAPE, 16, torch.float32)
    with pytest.raises(EngineError, match=f"block {highest} is not below {highest}"):
        backend().attention.attend(torch.zeros(1, 6, 64), cache, plan, SHAPE)
    with pytest.raises(ValueError, match="plan is for 1 tokens"):
        backend().attention.attend(torch.zeros(2, 6, 64), cache, plan, SHAPE)


def attend_to_shared(
    prefix: int,
    rows: list[Row],
    alone: list[int],
    shape: AttentionShape,
    dtype: torch.dtype,
    block_size: int,
    threads: int,
    instruction_set: str | None = None,
    kept: torch.dtype | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Rows of sequences that start with the same tokens: in the same blocks, and in blocks apart.

    Rows whose index is in alone have the tokens, but blocks of their own in both.
    """
    contexts = sequences([row.context_len for row in rows], shape, dtype)
    first = max(contexts, key=lambda context: len(context[1]))
    for _, keys, values in contexts:
        keys[:prefix], values[:prefix] = (
            first[1][: len(keys)][:prefix],
            first[2][: len(keys)][:prefix],
        )
    num_blocks = sum(-(-row.context_len // block_size) for row in rows) + 3
    batch = make_batch(rows, block_size, num_blocks, torch.Generator().manual_seed(0))
    cache = empty_cache(num_blocks, shape, block_size, kept or dtype)
    queries = []
    for index, (row, (q, k, v)) in enumerate(zip(rows, contexts, strict=True)):
        write_context(cache, batch, index, k[: row.context_len], v[: row.context_len])
        queries.append(q[row.context_len - row.query_len : row.context_len])
    kernels = backend(threads, instruction_set)

    def run() -> list[Tensor]:
        plan = kernels.attention.plan(batch, block_size)
        found = kernels.attention.attend(torch.cat(queries), cache, plan, shape)
        assert same_bits(kernels.attention.attend(torch.cat(queries), cache, plan, shape), found)
        return list(found.split(batch.host_query_lens))

    apart = run()
    owner = next(i for i in range(len(rows)) if i not in alone)
    for index, row in enumerate(rows):
        shared = min(prefix, row.context_len, rows[owner].context_len) // block_size
        if index not in alone:
            batch.block_tables[index, :shared] = batch.block_tables[owner, :shared]
    return run(), apart


@st.composite
def sharing(draw: st.DrawFn) -> tuple[int, list[Row], list[int], AttentionShape, int, int]:
    prefix = draw(st.integers(200, 1100))
    rows = []
    for _ in range(draw(st.integers(2, 12))):
        context = draw(st.integers(max(1, prefix - 300), prefix + 300))
        rows.append(
            Row(draw(st.integers(1, min(context, draw(st.sampled_from((1, 9, 40)))))), context)
        )
    alone = draw(st.lists(st.integers(1, len(rows) - 1), max_size=3))
    kv_heads, group = draw(st.sampled_from(((1, 1), (3, 3), (2, 4), (1, 9))))
    shape = AttentionShape(
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((16, 64, 80))),
        scale=0.125,
        window=draw(st.sampled_from((None, None, 100, 300, 600))),
        softcap=draw(st.sampled_from((None, 5.0))),
    )
    block_size = draw(st.sampled_from((8, 16, 32, 128)))
    return prefix, rows, alone, shape, block_size, draw(st.integers(1, 3))


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(("dtype", "kept"), CACHES)
@settings(max_examples=15, deadline=None)
@given(case=sharing())
def test_sharing_blocks_changes_no_bit(
    dtype: torch.dtype,
    kept: torch.dtype,
    instruction_set: str,
    case: tuple[int, list[Row], list[int], AttentionShape, int, int],
) -> None:
    prefix, rows, alone, shape, block_size, threads = case
    together, apart = attend_to_shared(
        prefix, rows, alone, shape, dtype, block_size, threads, instruction_set, kept
    )
    for index, (left, right) in enumerate(zip(together, apart, strict=True)):
        assert same_bits(left, right), index


def test_many_sequences_share_several_pieces() -> None:
    rows = [Row(1, 800 + i) for i in range(90)]
    together, apart = attend_to_shared(780, rows, [5, 50], SHAPE, torch.bfloat16, 16, 2)
    assert all(same_bits(left, right) for left, right in zip(together, apart, strict=True))
