"""Every backend against the definitions in float64.

float32: to a few roundings. bfloat16: the error is at most twice what the reference makes of it in
the same dtype (the bound that FlashAttention is tested with).
"""

from functools import cache

import definitions
import pytest
import torch
from batches import CPU, AttentionCase, Row, attention_case, blocks_for, empty_cache, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loire.checkpoint.feed_forward import Activation, PlainActivation
from loire.kernels.interface import AttentionShape, Backend, HeadNorms, LayerCache, RotaryTable
from loire.kernels.quantization import quantize_vectors
from loire.kernels.reference import ReferenceBackend
from loire.kernels.select import available_backends, select_backend

BACKENDS = [info.name for info in available_backends() if info.usable]
DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-6
ACTIVATIONS: tuple[PlainActivation, ...] = ("silu", "gelu", "gelu_tanh")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, dtype: torch.dtype) -> Backend:
    return select_backend(request.param, CPU, dtype)


def check(actual: Tensor, reference: Tensor, exact: Tensor) -> None:
    """actual and reference have the same dtype; exact is float64."""
    assert actual.dtype == reference.dtype
    assert actual.shape == reference.shape
    assert torch.isfinite(actual).all()
    scale = float(exact.abs().max())
    error = float((actual.double() - exact).abs().max())
    if actual.dtype == torch.float32:
        assert error <= 2e-6 * scale
    else:
        bound = float((reference.double() - exact).abs().max())
        assert bound < 0.02 * scale, "the reference itself is far off"
        assert error <= 2 * bound + 1e-6 * scale


def normal(*size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


REFERENCE = ReferenceBackend()


# --- linear ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 7, 17, 64])
@pytest.mark.parametrize(("out_features", "in_features"), [(48, 64), (33, 40), (1, 5), (259, 96)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(
    backend: Backend,
    dtype: torch.dtype,
    num_tokens: int,
    out_features: int,
    in_features: int,
    with_bias: bool,
) -> None:
    weight = normal(out_features, in_features, dtype=dtype)
    bias = normal(out_features, dtype=dtype, seed=1) if with_bias else None
    x = normal(num_tokens, in_features, dtype=dtype, seed=2)
    exact = x.double() @ weight.double().T
    if bias is not None:
        exact = exact + bias.double()
    reference = REFERENCE.linear.pack(weight, bias)(x)
    linear = backend.linear.pack(weight.clone(), bias)
    assert (linear.in_features, linear.out_features) == (in_features, out_features)
    assert linear.weight_bytes >= out_features * in_features * weight.element_size()
    check(linear(x), reference, exact)


def test_linear_takes_rows_that_are_not_contiguous(backend: Backend, dtype: torch.dtype) -> None:
    weight, wide = normal(24, 32, dtype=dtype), normal(6, 64, dtype=dtype, seed=1)
    x = wide[::2, :32]
    exact = x.double() @ weight.double().T
    check(backend.linear.pack(weight.clone())(x), REFERENCE.linear.pack(weight)(x), exact)


# --- norms and activations ------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("size", [8, 33, 576])
def test_rms_norm(backend: Backend, dtype: torch.dtype, num_tokens: int, size: int) -> None:
    x = normal(num_tokens, size, dtype=dtype) * 3
    weight = normal(size, dtype=torch.float32, seed=1)
    exact = definitions.rms_norm(x, weight, EPS)
    check(
        backend.pointwise.rms_norm(x.clone(), weight, EPS),
        REFERENCE.pointwise.rms_norm(x, weight, EPS),
        exact,
    )


def test_rms_norm_of_tiny_and_huge_values(backend: Backend, dtype: torch.dtype) -> None:
    x = normal(2, 64, dtype=dtype) * torch.tensor([[1e-6], [1e6]], dtype=dtype)
    weight = torch.ones(64)
    exact = definitions.rms_norm(x, weight, EPS)
    for row in range(2):
        actual = backend.pointwise.rms_norm(x[row : row + 1].clone(), weight, EPS)
        reference = REFERENCE.pointwise.rms_norm(x[row : row + 1], weight, EPS)
        check(actual, reference, exact[row : row + 1])


def test_add_rms_norm(backend: Backend, dtype: torch.dtype) -> None:
    x, residual = normal(5, 64, dtype=dtype), normal(5, 64, dtype=torch.float32, seed=1)
    weight = normal(64, dtype=torch.float32, seed=2)
    total = x.double() + residual.double()
    normed, summed = backend.pointwise.add_rms_norm(x.clone(), residual.clone(), weight, EPS)
    assert summed.dtype == torch.float32
    torch.testing.assert_close(summed.double(), total, rtol=1e-6, atol=1e-6)
    reference, _ = REFERENCE.pointwise.add_rms_norm(x.clone(), residual.clone(), weight, EPS)
    check(normed, reference, definitions.rms_norm(total, weight, EPS))


@pytest.mark.parametrize("scale", [1.0, 8.5])
@pytest.mark.parametrize("size", [16, 33, 100])
def test_embed(backend: Backend, dtype: torch.dtype, size: int, scale: float) -> None:
    table, weight = normal(50, size, dtype=dtype), normal(size, dtype=torch.float32, seed=1)
    token_ids = torch.tensor([3, 49, 0, 3, *range(20)])
    x, residual = backend.pointwise.embed(token_ids, table, scale, weight, EPS)
    assert (x.dtype, residual.dtype) == (dtype, torch.float32)
    rows = table[token_ids].float() * scale
    assert torch.equal(residual, rows)
    reference, _ = REFERENCE.pointwise.embed(token_ids, table, scale, weight, EPS)
    check(x, reference, definitions.rms_norm(rows, weight, EPS))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("inner", [8, 31, 96])
def test_gated_activation(
    backend: Backend, dtype: torch.dtype, activation: Activation, inner: int
) -> None:
    gate_up = normal(6, 2 * inner, dtype=dtype) * 3
    exact = definitions.gated_activation(gate_up, activation)
    as_it_is = torch.eye(2 * inner, dtype=dtype)
    reference = REFERENCE.linear.pack(as_it_is, gate=activation)(gate_up)
    check(backend.linear.pack(as_it_is.clone(), gate=activation)(gate_up), reference, exact)


def test_activations_of_extreme_values_are_finite(backend: Backend, dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 1e4], dtype=dtype)
    gate_up = torch.cat([gate, torch.ones_like(gate)])[None]
    for activation in ("silu", "gelu", "gelu_tanh"):
        exact = definitions.gated_activation(gate_up, activation)
        given = backend.linear.pack(torch.zeros(14, 1, dtype=dtype), gate_up[0], gate=activation)
        actual = given(torch.ones(1, 1, dtype=dtype))
        torch.testing.assert_close(actual.double(), exact, rtol=0.02, atol=1e-3)


# --- sums and gates -------------------------------------------------------------------------------


def test_a_residual_is_scaled_and_perhaps_only_rounded(
    backend: Backend, dtype: torch.dtype
) -> None:
    x, weight = normal(11, 70, dtype=dtype), normal(70, dtype=torch.float32, seed=2)
    residual = normal(11, 70, dtype=torch.float32, seed=1)
    exact = (x.double() + residual.double()) * 0.3
    pointwise = backend.pointwise
    normed, total = pointwise.add_rms_norm(x.clone(), residual.clone(), weight, EPS, 0.3)
    check(total, exact.float(), exact)
    reference, _ = REFERENCE.pointwise.add_rms_norm(x.clone(), residual.clone(), weight, EPS, 0.3)
    check(normed, reference, definitions.rms_norm(exact, weight, EPS))
    rounded, total = pointwise.add_rms_norm(x.clone(), residual.clone(), None, EPS, 0.3)
    assert torch.equal(rounded, total.to(dtype))


def test_rows_that_are_only_looked_up(backend: Backend, dtype: torch.dtype) -> None:
    table, tokens = normal(9, 70, dtype=dtype), torch.tensor([3, 0, 8])
    rounded, rows = backend.pointwise.embed(tokens, table, 0.7, None, EPS)
    exact = table[tokens].double() * 0.7
    check(rows, exact.float(), exact)
    assert torch.equal(rounded, rows.to(dtype))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("tokens", [1, 19])
def test_sums_and_gates(backend: Backend, dtype: torch.dtype, tokens: int, wide: bool) -> None:
    """Of rows that lie apart, too."""
    x = normal(tokens, 70, dtype=dtype)
    y = normal(tokens, 200, dtype=torch.float32 if wide else dtype, seed=1)[:, 50:120]
    exact = x.double() + y.double()
    check(backend.pointwise.add(x.clone(), y), REFERENCE.pointwise.add(x, y), exact)
    for activation in ACTIVATIONS:
        both = torch.cat([x.double(), y.double()], dim=-1)
        exact = definitions.gated_activation(both, activation)
        reference = REFERENCE.pointwise.gated(x, y, activation)
        check(backend.pointwise.gated(x.clone(), y, activation), reference, exact)


# --- rotation and storage -------------------------------------------------------------------------


@pytest.mark.parametrize("rotary_dim", [16, 24, 32])
@pytest.mark.parametrize(
    ("with_norms", "values_are"),
    # Values are normalised where queries and keys are.
    [
        *((False, values) for values in ("their own", "keys")),
        *((True, values) for values in ("their own", "normalised", "keys", "keys, normalised")),
    ],
)
def test_rotate_and_store(
    backend: Backend, dtype: torch.dtype, rotary_dim: int, with_norms: bool, values_are: str
) -> None:
    shared = "keys" in values_are
    shape = AttentionShape(
        num_heads=4, num_kv_heads=2, head_dim=32, scale=1.0, values_are_keys=shared
    )
    rows = [Row(1, 20), Row(7, 7), Row(5, 30), Row(1, 1)]
    block_size = 16
    tables, num_blocks = blocks_for(rows, block_size, seed=0)
    batch = make_batch(rows, tables, block_size)
    num_tokens = sum(row.query_len for row in rows)
    qkv = normal(num_tokens, (4 + (1 if shared else 2) * 2) * 32, dtype=dtype)
    angles = normal(40, rotary_dim // 2, dtype=torch.float32, seed=1) * 3
    rotary = RotaryTable(angles.cos() * 1.1, angles.sin() * 1.1)
    norms = None
    if with_norms:
        weights = (normal(32, dtype=torch.float32, seed=seed) for seed in (2, 3))
        norms = HeadNorms(*weights, EPS, values="normalised" in values_are)
    heads = qkv.view(num_tokens, -1, 32)
    queries, keys, values = heads[:, :4].double(), heads[:, 4:6].double(), heads[:, -2:]
    if norms is not None:
        queries = definitions.rms_norm(queries, norms.query_weight, EPS)
        keys = definitions.rms_norm(keys, norms.key_weight, EPS)
    queries = definitions.rotate(queries, rotary, batch.positions)
    keys = definitions.rotate(keys, rotary, batch.positions)

    def run(backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
        cache = empty_cache(num_blocks, shape, block_size, dtype)
        rotated = backend.attention.rotate_and_store(
            qkv.clone(), shape, norms, rotary, batch, cache
        )
        blocks, slots = batch.slots // block_size, batch.slots % block_size
        stored = torch.zeros(num_blocks, block_size, dtype=torch.bool)
        stored[blocks, slots] = True
        # Nothing else was written.
        assert cache.keys.transpose(1, 2)[~stored].isnan().all()
        assert cache.values.transpose(1, 2)[~stored].isnan().all()
        return rotated, cache.keys[blocks, :, slots], cache.values[blocks, :, slots]

    actual, reference = run(backend), run(REFERENCE)
    check(actual[0], reference[0], queries)
    check(actual[1], reference[1], keys)
    if norms is not None and norms.values:
        check(actual[2], reference[2], definitions.rms_norm(values, torch.ones(32), EPS))
    else:
        assert torch.equal(actual[2], values)


# --- attention ------------------------------------------------------------------------------------


def attended(backend: Backend, case: AttentionCase, shape: AttentionShape) -> Tensor:
    plan = backend.attention.plan(case.batch, case.cache.keys.shape[2])
    output = backend.attention.attend(case.queries.clone(), case.cache, plan, shape)
    return output.view(case.queries.shape)


def exactly_attended(case: AttentionCase, shape: AttentionShape) -> Tensor:
    lengths = list(case.batch.host_query_lens)
    return torch.cat(
        [
            definitions.attend(queries, keys, values, shape)
            for queries, (keys, values) in zip(
                case.queries.split(lengths), case.contexts, strict=True
            )
        ]
    )


def check_attention(backend: Backend, case: AttentionCase, shape: AttentionShape) -> None:
    exact = exactly_attended(case, shape)
    check(attended(backend, case, shape), attended(REFERENCE, case, shape), exact)


ROWS = [Row(1, 1), Row(1, 16), Row(5, 5), Row(1, 17), Row(20, 50), Row(1, 90), Row(33, 33),
        Row(3, 64), Row(1, 40), Row(1, 91)]  # fmt: skip


@cache
def case_of_rows(shape: AttentionShape, dtype: torch.dtype) -> tuple[AttentionCase, Tensor, Tensor]:
    """ROWS in a shape without sinks (which are not compared), what the reference makes of them,
    and what is exact: once for all backends."""
    case = attention_case(ROWS, shape, dtype=dtype)
    return case, attended(REFERENCE, case, shape), exactly_attended(case, shape)


@pytest.mark.parametrize("window", [None, 1, 7, 30])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 4, 16), (6, 2, 32), (9, 3, 64), (8, 1, 24), (2, 1, 256)]
)
def test_attention(
    backend: Backend,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    window: int | None,
    softcap: float | None,
) -> None:
    shape = AttentionShape(heads, kv_heads, dim, dim**-0.5, window, softcap)
    case, reference, exact = case_of_rows(shape, dtype)
    check(attended(backend, case, shape), reference, exact)


@pytest.mark.parametrize("window", [None, 7])
def test_attention_with_sinks(backend: Backend, dtype: torch.dtype, window: int | None) -> None:
    shape = AttentionShape(6, 2, 32, 32**-0.5, window, sinks=torch.linspace(-3.0, 4.0, 6))
    check_attention(backend, attention_case(ROWS, shape, dtype=dtype), shape)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_attention_over_codes(backend: Backend, window: int | None, softcap: float | None) -> None:
    """A cache of codes counts as what the codes stand for; what no sequence wrote is not read."""
    shape = AttentionShape(6, 2, 32, 32**-0.5, window, softcap)
    plain = attention_case(ROWS, shape)
    kept = [quantize_vectors(x) for x in (plain.cache.keys, plain.cache.values)]
    cache = LayerCache(kept[0][0], kept[1][0], kept[0][1], kept[1][1])
    assert cache.key_scales is not None
    assert cache.key_scales.isnan().any()

    def stands_for(x: Tensor) -> Tensor:
        codes, scales = quantize_vectors(x)
        return codes * scales[..., None]

    contexts = [(stands_for(keys), stands_for(values)) for keys, values in plain.contexts]
    case = AttentionCase(plain.batch, cache, plain.queries, contexts)
    check_attention(backend, case, shape)


@st.composite
def batches(draw: st.DrawFn) -> list[Row]:
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        context_len = draw(st.integers(1, 70))
        decode = draw(st.booleans())
        rows.append(Row(1 if decode else draw(st.integers(1, context_len)), context_len))
    return rows


@settings(max_examples=60, deadline=None)
@given(
    rows=batches(),
    block_size=st.sampled_from([1, 8, 16, 32]),
    window=st.none() | st.integers(1, 80),
    softcap=st.none() | st.just(5.0),
    heads=st.sampled_from([(4, 2), (3, 3), (5, 1)]),
    dim=st.sampled_from([16, 24, 64]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_attention_of_any_batch(
    rows: list[Row],
    block_size: int,
    window: int | None,
    softcap: float | None,
    heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    shape = AttentionShape(*heads, dim, dim**-0.5, window, softcap)
    case = attention_case(rows, shape, block_size=block_size, dtype=dtype, seed=seed)
    exact, reference = exactly_attended(case, shape), attended(REFERENCE, case, shape)
    for name in BACKENDS:
        check(attended(select_backend(name, CPU, dtype), case, shape), reference, exact)


def test_a_broken_row_harms_no_other(backend: Backend, dtype: torch.dtype) -> None:
    """NaN in the keys and values of one sequence stays in its own rows."""
    shape = AttentionShape(4, 2, 32, 32**-0.5)
    rows = [Row(1, 40), Row(1, 41), Row(6, 40), Row(1, 17)]
    case = attention_case(rows, shape, dtype=dtype)
    healthy = attended(backend, case, shape)
    table = case.batch.block_tables[1, :3].long()
    case.cache.keys[table] = float("nan")
    case.cache.values[table] = float("inf")
    broken = attended(backend, case, shape)
    assert not torch.isfinite(broken[1]).any()
    others = [0, *range(2, 9)]
    assert torch.equal(broken[others], healthy[others])


def test_the_same_row_in_any_batch(backend: Backend, dtype: torch.dtype) -> None:
    """To the bit where the backend promises it, otherwise to a few roundings."""
    shape = AttentionShape(6, 2, 32, 32**-0.5)
    rows = [Row(1, 33), Row(1, 70), Row(1, 35), Row(9, 50), Row(1, 34)]
    together = attended(backend, attention_case(rows, shape, dtype=dtype), shape)
    for row, both in zip(rows, together.split([r.query_len for r in rows]), strict=True):
        case = attention_case([row], shape, dtype=dtype, block_size=8)
        alone = attended(backend, case, shape)
        if dtype in backend.batch_invariant_dtypes:
            assert torch.equal(alone, both)
        else:
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(alone, both, rtol=2 * eps, atol=4 * eps)


def test_linear_is_the_same_in_any_batch(backend: Backend, dtype: torch.dtype) -> None:
    linear = backend.linear.pack(normal(96, 128, dtype=dtype), normal(96, dtype=dtype, seed=3))
    x = normal(37, 128, dtype=dtype, seed=1)
    whole = linear(x)
    for size in (1, 2, 5, 16):
        parts = torch.cat([linear(part) for part in x.split(size)])
        if dtype in backend.batch_invariant_dtypes:
            assert torch.equal(parts, whole)
        else:
            eps = torch.finfo(dtype).eps
            scale = float(whole.abs().max())
            torch.testing.assert_close(parts, whole, rtol=2 * eps, atol=4 * eps * scale)


def test_wide_linear_is_not_rounded(backend: Backend, dtype: torch.dtype) -> None:
    linear = backend.linear.pack(normal(40, 96, dtype=dtype))
    x = normal(5, 96, dtype=dtype, seed=1)
    wide = linear(x, wide=True)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.to(dtype), linear(x))
