"""Products whose halves meet: gate(first) * second."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, SETS, assert_close, backend, needs_library, same_bits
from torch import Tensor

from loire.base.config import Quantization
from loire.base.errors import EngineError
from loire.checkpoint.feed_forward import Activation

pytestmark = needs_library

EXACT = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
}


def random(*size: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*size, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", EXACT)
@settings(max_examples=10, deadline=None)
@given(tokens=st.integers(1, 20), size=st.integers(1, 100), scale=st.sampled_from((1.0, 30.0)))
def test_the_activation(
    dtype: torch.dtype,
    instruction_set: str,
    activation: Activation,
    tokens: int,
    size: int,
    scale: float,
) -> None:
    x = random(tokens, 2 * size, dtype=dtype, scale=scale)
    gate, up = x.double().chunk(2, dim=-1)
    as_it_is = torch.eye(2 * size, dtype=dtype)
    found = backend(2, instruction_set).linear.pack(as_it_is, gate=activation)(x)
    assert_close(found, EXACT[activation](gate) * up, absolute=1e-6 * scale**2)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_relu_has_no_second_half(dtype: torch.dtype, instruction_set: str) -> None:
    """Of each result, in rows of any company; and one that is no number stays none."""
    x = random(20, 75, dtype=dtype, scale=3.0)
    x[3, 5], x[4, 6] = float("nan"), float("inf")
    kernels = backend(2, instruction_set).linear
    linear = kernels.pack(torch.eye(75, dtype=dtype)[:, :75], gate="squared_relu")
    assert (linear.out_features, linear.in_features) == (75, 75)
    clean = [i for i in range(20) if i not in (3, 4)]
    found = linear(x[clean])
    assert_close(found, F.relu(x[clean].double()).square(), absolute=1e-6)
    assert same_bits(linear(x[:1]), found[:1])
    assert linear(x)[3].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", EXACT)
def test_extreme_values(dtype: torch.dtype, activation: Activation) -> None:
    gate = torch.tensor([-1e30, -100.0, -90.0, 0.0, 90.0, 1e30, float("nan"), float("inf")])
    bias = torch.cat([gate, torch.ones_like(gate)]).to(dtype)
    linear = backend().linear.pack(torch.zeros(16, 1, dtype=dtype), bias, gate=activation)
    found = linear(torch.ones(1, 1, dtype=dtype))[0]
    expected = EXACT[activation](gate.to(dtype).double())
    finite = torch.isfinite(expected)
    assert_close(found[finite], expected[finite], absolute=1e-6)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@settings(max_examples=12, deadline=None)
@given(
    tokens=st.sampled_from((1, 2, 5, 7, 13, 40, 200)),
    inputs=st.integers(1, 150),
    size=st.integers(1, 150),
    with_bias=st.booleans(),
    in_parts=st.booleans(),
)
def test_equals_the_product_of_both_halves_and_then_the_gate(
    dtype: torch.dtype,
    instruction_set: str,
    quantization: Quantization | None,
    tokens: int,
    inputs: int,
    size: int,
    with_bias: bool,
    in_parts: bool,
) -> None:
    """To the bit; the gate alone is a product that leaves its inputs as they are."""
    kernels = backend(2, instruction_set)
    weight = random(2 * size, inputs, dtype=dtype)
    bias = random(2 * size, dtype=dtype, seed=1) if with_bias else None
    x = random(tokens, inputs, dtype=dtype, seed=2)
    parts = list(weight.split(size)) if in_parts else weight
    linear = kernels.linear.pack(parts, bias, quantization=quantization, gate="silu")
    assert (linear.in_features, linear.out_features) == (inputs, size)
    both = kernels.linear.pack(weight, bias, quantization=quantization)
    halves = kernels.linear.pack(torch.eye(2 * size, dtype=dtype), gate="silu")
    assert same_bits(linear(x), halves(both(x)))
    if size % 32 == 0:
        assert linear.weight_bytes == both.weight_bytes


def test_refuses_what_has_no_halves_or_is_wide() -> None:
    with pytest.raises(EngineError, match="7 rows have no two halves"):
        backend().linear.pack(torch.zeros(7, 32), gate="silu")
    linear = backend().linear.pack(torch.zeros(8, 32), gate="silu")
    with pytest.raises(EngineError, match="gated results are not wide"):
        linear(torch.zeros(1, 32), wide=True)
