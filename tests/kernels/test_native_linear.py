import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, SETS, assert_close, backend, needs_library, same_bits

from loire.base.errors import ConfigError

pytestmark = needs_library


def random(*size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 40),
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 100),
    with_bias=st.booleans(),
)
def test_equals_the_product_in_float64(
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
    exact = x.double() @ weight.double().T
    if bias is not None:
        exact = exact + bias.double()
    found = backend(2, instruction_set).linear.pack(weight, bias)(x)
    assert_close(found, exact, absolute=1e-5 * inputs**0.5)


@pytest.mark.parametrize("instruction_set", SETS)
def test_adds_in_the_order_of_the_inputs(instruction_set: str) -> None:
    inputs = 32 * 5
    weight = random(24, inputs, dtype=torch.bfloat16)
    x = random(3, inputs, dtype=torch.bfloat16, seed=1)
    # Products of bfloat16 are exact in float32, so multiply and add is the fused operation.
    products = x.float().numpy()[:, None] * weight.float().numpy()[None]
    total = np.zeros(products.shape[:2], dtype=np.float32)
    for k in range(inputs):
        total = total + products[..., k]
    found = backend(2, instruction_set).linear.pack(weight)(x)
    assert same_bits(found, torch.from_numpy(total).bfloat16())


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 960), (64, 33), (1536, 576), (80, 49)])
def test_a_row_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, instruction_set: str, inputs: int, outputs: int
) -> None:
    weight = random(outputs, inputs, dtype=dtype)
    x = random(210, inputs, dtype=dtype, seed=1)
    linear = backend(2, instruction_set).linear.pack(weight)
    whole = linear(x)
    for tokens in (1, 2, 3, 4, 5, 6, 7, 12, 31, 97, 200):
        assert same_bits(linear(x[:tokens]), whole[:tokens])
        assert same_bits(linear(x[-tokens:]), whole[-tokens:])
    for threads in (1, 3):
        assert same_bits(backend(threads, instruction_set).linear.pack(weight)(x), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_with_fused_arithmetic_agree(dtype: torch.dtype) -> None:
    weight, x = random(70, 300, dtype=dtype), random(9, 300, dtype=dtype, seed=1)
    # Without fused operations float32 products are rounded once more; those of bfloat16 are exact.
    sets = [name for name in SETS if name != "portable" or dtype == torch.bfloat16]
    results = [backend(2, name).linear.pack(weight)(x) for name in sets]
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("instruction_set", SETS)
def test_denormals_count_as_zero(instruction_set: str) -> None:
    tiny = torch.tensor([[1e-39, 0.0]]).bfloat16()
    assert tiny[0, 0] != 0
    found = backend(1, instruction_set).linear.pack(torch.full((1, 2), 1e30).bfloat16())(tiny)
    assert found.item() == 0.0


def test_infinities_and_nan_stay_in_their_row() -> None:
    weight = random(40, 64, dtype=torch.bfloat16)
    x = random(5, 64, dtype=torch.bfloat16, seed=1)
    clean = backend().linear.pack(weight)(x)
    x[1, 3], x[3, 60] = float("nan"), float("inf")
    found = backend().linear.pack(weight)(x)
    assert found[1].isnan().all()
    assert (~found[3].isfinite()).all()
    assert same_bits(found[[0, 2, 4]], clean[[0, 2, 4]])


def test_takes_strided_weights_and_frees_the_original() -> None:
    storage = random(40, 100, dtype=torch.float32)
    x = random(3, 48, dtype=torch.float32, seed=1)
    for weight in (storage[:, 10:58], storage.T[10:58, :48], storage[::2, 52:]):
        found = backend().linear.pack(weight)(x[:, : weight.shape[1]].contiguous())
        exact = x[:, : weight.shape[1]].double() @ weight.double().T
        assert_close(found, exact, absolute=1e-4)
    weight = storage.clone()
    linear = backend().linear.pack(weight)
    before = linear(random(2, 100, dtype=torch.float32))
    weight.zero_()
    assert same_bits(linear(random(2, 100, dtype=torch.float32)), before)
    assert linear.weight_bytes == 64 * 128 * 4  # whole panels of 32 outputs, steps of 32 inputs


def test_refuses_what_does_not_fit() -> None:
    linear = backend().linear.pack(random(8, 32, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"2 x 31 torch.bfloat16, but the weight takes 32"):
        linear(torch.zeros(2, 31, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"torch.float32, but the weight takes 32 torch.bfloat16"):
        linear(torch.zeros(2, 32))
    with pytest.raises(ConfigError, match=r"not in torch.float16"):
        backend().linear.pack(torch.zeros(8, 32, dtype=torch.float16))


def test_no_rows() -> None:
    linear = backend().linear.pack(random(8, 32, dtype=torch.bfloat16))
    assert linear(torch.zeros(0, 32, dtype=torch.bfloat16)).shape == (0, 8)
