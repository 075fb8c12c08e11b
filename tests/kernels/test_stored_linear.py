"""Weights that stay in the Q4_1 blocks of a file: computed from the very numbers stored there."""

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import SETS, assert_close, backend, needs_library, same_bits
from torch import Tensor

from loire.checkpoint.formats import Q4_1, Q4_K
from loire.kernels.block_formats import StoredTensor, unpack
from loire.kernels.dequantize import dequantize_by_library
from loire.kernels.native.linear import q4_1_blocks
from loire.kernels.quantization import quantize_activations
from loire.kernels.reference import ReferenceBackend


def random(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stored(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    values = random(outputs, inputs, seed=seed).numpy()
    blocks = gguf.quants.quantize(values, GGMLQuantizationType.Q4_1)
    return torch.from_numpy(np.ascontiguousarray(blocks)).view(outputs, -1)


def numbers(blocks: Tensor) -> Tensor:
    data = memoryview(blocks.contiguous().numpy().tobytes())
    return dequantize_by_library(data, Q4_1, torch.float32).view(len(blocks), -1)


def exact_product(x: Tensor, blocks: Tensor) -> Tensor:
    codes, scales = quantize_activations(x)
    rounded = (codes.double() * scales.double()[..., None]).flatten(1)
    return rounded @ numbers(blocks).double().T


def test_q4_k_keeps_its_codes_and_rounds_its_scales_once() -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (9, 3, 144), dtype=np.uint8)
    factors = np.random.default_rng(1).uniform(-1e-2, 1e-2, (9, 3, 2)).astype("<f2")
    blocks[..., :4] = factors.view(np.uint8)
    data = memoryview(blocks.tobytes())
    exact = dequantize_by_library(data, Q4_K, torch.float32).view(9, 24, 32)
    rows = q4_1_blocks(StoredTensor(Q4_K, torch.from_numpy(blocks).view(9, -1)))
    assert rows.shape == (9, 24 * 20)
    taken = unpack(rows, Q4_1)
    codes, scales, minimums = taken.codes, taken.scales, taken.minimums
    assert minimums is not None
    # Each number is at most half a unit in the last place of its scale and its minimum away.
    bound = (codes * scales[..., None].abs() + minimums[..., None].abs()) * 2.0**-11 + 1e-7
    assert ((numbers(rows).view(9, 24, 32) - exact).abs() <= bound).all()
    assert (codes.amin(), codes.amax()) == (0, 15)
    assert exact.abs().amax() > 1


@needs_library
@pytest.mark.parametrize("instruction_set", SETS)
@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 40),
    groups=st.integers(1, 7),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    with_bias=st.booleans(),
)
def test_equals_the_definition(
    instruction_set: str,
    tokens: int,
    groups: int,
    sizes: list[int],
    with_bias: bool,
) -> None:
    dtype = torch.bfloat16
    parts = [stored(size, 32 * groups, seed) for seed, size in enumerate(sizes)]
    bias = random(sum(sizes), dtype=dtype, seed=8) if with_bias else None
    x = random(tokens, 32 * groups, dtype=dtype, seed=9)
    exact = exact_product(x, torch.cat(parts))
    if bias is not None:
        exact = exact + bias.double()
    for kernels in (backend(2, instruction_set), ReferenceBackend()):
        linear = kernels.linear.pack(
            [StoredTensor(Q4_1, part) for part in parts], bias, dtype=dtype
        )
        assert (linear.in_features, linear.out_features) == (32 * groups, sum(sizes))
        assert_close(linear(x), exact, absolute=1e-5 * (32 * groups) ** 0.5)
        assert linear(x, wide=True).dtype == torch.float32


@needs_library
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 960), (64, 33), (1536, 576)])
def test_a_row_has_the_same_bits_in_any_batch(
    instruction_set: str, inputs: int, outputs: int
) -> None:
    blocks = stored(outputs, inputs)
    x = random(210, inputs, dtype=torch.bfloat16, seed=1)
    linear = backend(2, instruction_set).linear.pack(
        StoredTensor(Q4_1, blocks), dtype=torch.bfloat16
    )
    whole = linear(x)
    for tokens in (1, 2, 3, 4, 5, 6, 7, 12, 13, 31, 97, 200):
        assert same_bits(linear(x[:tokens]), whole[:tokens])
        assert same_bits(linear(x[-tokens:]), whole[-tokens:])
    for threads in (1, 3):
        other = backend(threads, instruction_set).linear.pack(
            StoredTensor(Q4_1, blocks), dtype=x.dtype
        )
        assert same_bits(other(x), whole)


@needs_library
def test_instruction_sets_with_fused_arithmetic_agree() -> None:
    """Among the scales and minimums are denormal halves, which nothing may flush."""
    blocks, x = stored(70, 320), random(9, 320, seed=1)
    blocks.view(70, 10, 20)[:, ::3, 0] = 77
    blocks.view(70, 10, 20)[:, ::3, 1] = 0
    blocks.view(70, 10, 20)[:, 1::3, 2] = 200
    blocks.view(70, 10, 20)[:, 1::3, 3] = 128
    sets = [name for name in SETS if name != "portable"]
    results = [
        backend(2, name).linear.pack(StoredTensor(Q4_1, blocks), dtype=x.dtype)(x) for name in sets
    ]
    assert all(same_bits(result, results[0]) for result in results)
    assert_close(results[0], exact_product(x, blocks), absolute=1e-4)
    only_small = blocks.view(70, 10, 20)[:, :1].reshape(70, 20).clone()
    only_small[:, 2:4] = 0
    exact = exact_product(x[:, :32], only_small)
    assert exact.abs().min() > 0
    for name in SETS:
        linear = backend(2, name).linear.pack(StoredTensor(Q4_1, only_small), dtype=x.dtype)
        assert torch.allclose(linear(x[:, :32]).double(), exact, rtol=1e-4, atol=0)


@needs_library
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(instruction_set: str, bad: float) -> None:
    blocks, x = stored(50, 64), random(3, 64, seed=1)
    linear = backend(2, instruction_set).linear.pack(StoredTensor(Q4_1, blocks), dtype=x.dtype)
    good = linear(x)
    x[1, 40] = bad
    found = linear(x)
    assert found[1].isnan().all()
    assert same_bits(found[[0, 2]], good[[0, 2]])


@needs_library
def test_bytes_are_counted() -> None:
    linear = backend(1).linear.pack(StoredTensor(Q4_1, stored(64, 320)), dtype=torch.bfloat16)
    reference = ReferenceBackend().linear.pack(
        StoredTensor(Q4_1, stored(64, 320)), dtype=torch.bfloat16
    )
    assert linear.weight_bytes == reference.weight_bytes == 64 * 200
