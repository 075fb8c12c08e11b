"""Quantized linear: equal to its definition, whole numbers exact, a row's bits its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, SETS, assert_close, backend, needs_library, same_bits

from loire.base.config import Quantization
from loire.kernels.quantization import (
    quantize_activations,
    quantize_weight,
)
from loire.kernels.reference_linear import ReferenceQuantizedLinear

pytestmark = needs_library

FORMATS: tuple[Quantization, ...] = ("int8", "int4")


def random(*size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact_product(
    x: torch.Tensor, weight: torch.Tensor, quantization: Quantization
) -> torch.Tensor:
    """float64 product of what the definition rounds both to."""
    codes, scales = quantize_weight(weight, quantization)
    rounded = (codes.double() * scales.double()[..., None]).flatten(1)[:, : weight.shape[1]]
    given_codes, given_scales = quantize_activations(x)
    given = given_codes.double() * given_scales.double()[..., None]
    return given.flatten(1)[:, : x.shape[1]] @ rounded.T


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantization", FORMATS)
@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 40),
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 100),
    with_bias=st.booleans(),
)
def test_equals_the_definition(
    quantization: Quantization,
    dtype: torch.dtype,
    instruction_set: str,
    tokens: int,
    inputs: int,
    outputs: int,
    with_bias: bool,
) -> None:
    weight = random(outputs, inputs, dtype=dtype)
    bias = random(outputs, dtype=dtype, seed=1) if with_bias else None
    x = random(tokens, inputs, dtype=dtype, seed=2)
    exact = exact_product(x, weight, quantization)
    if bias is not None:
        exact = exact + bias.double()
    linear = backend(2, instruction_set).linear.pack(weight, bias, quantization=quantization)
    assert_close(linear(x), exact, absolute=1e-5 * inputs**0.5)
    reference = ReferenceQuantizedLinear(weight, bias, quantization)
    assert_close(reference(x), exact, absolute=1e-5 * inputs**0.5)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 960), (64, 33), (1536, 576), (80, 49)])
def test_a_row_has_the_same_bits_in_any_batch(
    quantization: Quantization, instruction_set: str, inputs: int, outputs: int
) -> None:
    weight = random(outputs, inputs, dtype=torch.bfloat16)
    x = random(210, inputs, dtype=torch.bfloat16, seed=1)
    linear = backend(2, instruction_set).linear.pack(weight, quantization=quantization)
    whole = linear(x)
    for tokens in (1, 2, 3, 4, 5, 6, 7, 12, 13, 31, 97, 200):
        assert same_bits(linear(x[:tokens]), whole[:tokens])
        assert same_bits(linear(x[-tokens:]), whole[-tokens:])
    for threads in (1, 3):
        other = backend(threads, instruction_set).linear.pack(weight, quantization=quantization)
        assert same_bits(other(x), whole)


@pytest.mark.parametrize("quantization", FORMATS)
def test_instruction_sets_with_fused_arithmetic_agree(quantization: Quantization) -> None:
    weight, x = random(70, 300, dtype=torch.float32), random(9, 300, dtype=torch.float32, seed=1)
    sets = [name for name in SETS if name != "portable"]
    results = [backend(2, name).linear.pack(weight, quantization=quantization)(x) for name in sets]
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("any_scale", [False, True])
def test_scales_of_inputs_have_four_binary_digits_or_any(any_scale: bool, fine: bool) -> None:
    x = random(300, 32, dtype=torch.float32) * torch.logspace(-40, 32, 300)[:, None]
    x[7] = 0.0
    codes, scales = quantize_activations(x, any_scale=any_scale, fine=fine)
    largest = x.abs().amax(dim=1)
    finite, counts = largest < 2.0**100, largest >= 127 * 2.0**-100
    assert scales.isnan().flatten().equal(~finite)
    assert not scales[~counts].any()
    digits, _ = scales[finite].frexp()
    assert torch.equal(digits * 16, (digits * 16).round()) is not any_scale
    codes, scales = codes[finite & counts], scales[finite & counts]
    most = 1016 if fine else 127
    assert codes.abs().amax(dim=2).ge(most if any_scale else most * 0.88).all()
    assert codes.abs().max() == most
    assert ((codes * scales[..., None])[:, 0] - x[finite & counts]).abs().le(scales * 0.5001).all()


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("quantization", FORMATS)
def test_extremes(quantization: Quantization, instruction_set: str) -> None:
    """Zeros, one large input among small ones, and codes at both ends."""
    weight = torch.zeros(40, 96)
    weight[1] = 1e-30
    weight[2, ::2], weight[2, 1::2] = 3.0, -3.0
    weight[3, 7] = 1e30
    x = torch.zeros(5, 96)
    x[1, 5], x[2], x[3, ::2], x[4] = 1e20, -1.0, 1e-25, 127.0
    linear = backend(2, instruction_set).linear.pack(weight, quantization=quantization)
    exact = exact_product(x, weight, quantization)
    assert torch.allclose(linear(x).double(), exact, rtol=1e-5, atol=1e-16)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(
    quantization: Quantization, instruction_set: str, bad: float
) -> None:
    weight, x = random(50, 64, dtype=torch.float32), random(3, 64, dtype=torch.float32, seed=1)
    linear = backend(2, instruction_set).linear.pack(weight, quantization=quantization)
    good = linear(x)
    x[1, 40] = bad
    found = linear(x)
    assert found[1].isnan().all()
    assert same_bits(found[[0, 2]], good[[0, 2]])
    weight[7, 3] = bad
    broken = backend(2, instruction_set).linear.pack(weight, quantization=quantization)(x[:1])
    assert broken[0, 7].isnan()
    assert broken.isnan().sum() == 1


@pytest.mark.parametrize("quantization", FORMATS)
def test_weight_bytes_are_those_read(quantization: Quantization) -> None:
    linear = backend(1).linear.pack(
        random(64, 320, dtype=torch.bfloat16), quantization=quantization
    )
    reference = ReferenceQuantizedLinear(random(64, 320, dtype=torch.float32), None, quantization)
    assert linear.weight_bytes == reference.weight_bytes
