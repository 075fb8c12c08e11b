"""Weights that stay in the blocks of a file: computed from the very numbers stored there."""

from dataclasses import replace
from functools import reduce

import pytest
import torch
from native_cases import (
    DTYPES,
    SETS,
    Row,
    assert_close,
    backend,
    make_batch,
    needs_library,
    same_bits,
)
from torch import Tensor

from loire.checkpoint.formats import BLOCK_FORMATS, kept_bytes
from loire.kernels.block_formats import (
    UNPACK,
    StoredTensor,
    has_fine_inputs,
    has_powers,
    rounds_inputs,
)
from loire.kernels.interface import AdapterRows, Backend, LowRank, Weight
from loire.kernels.quantization import quantize_activations
from loire.kernels.reference import ReferenceBackend
from support.blocks import FITTED, stored

FORMAT_NAMES = sorted(UNPACK)
FORMAT_NAMES += [f"{name}{FITTED}" for name, fmt in BLOCK_FORMATS.items() if fmt.num_levels]


def random(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact_product(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """In float64, of float32 inputs as they are and of others rounded, but those for FP8."""
    values = weight.values() if isinstance(weight, StoredTensor) else weight
    given = x.double()
    if x.dtype is not torch.float32 and isinstance(weight, StoredTensor):
        fmt = weight.format
        if rounds_inputs(fmt):
            rule = {"any_scale": has_powers(fmt), "fine": has_fine_inputs(fmt)}
            codes, scales = quantize_activations(x, **rule)
            given = (codes.double() * scales.double()[..., None]).flatten(1)
    product = given @ values.double().T
    return product if bias is None else product + bias.double()


@needs_library
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMAT_NAMES)
def test_equals_the_definition(dtype: torch.dtype, instruction_set: str, fmt: str) -> None:
    inputs = 512
    parts = [stored(fmt, (size, inputs), seed) for seed, size in enumerate((50, 7, 33))]
    bias = random(90, dtype=dtype, seed=8)
    whole = reduce(StoredTensor.with_rows_of, parts)
    for tokens in (1, 5, 13, 40):
        x = random(tokens, inputs, dtype=dtype, seed=tokens)
        exact = exact_product(x, whole, bias)
        for kernels in (backend(2, instruction_set), ReferenceBackend()):
            linear = kernels.linear.pack(parts, bias, dtype=dtype)
            assert (linear.in_features, linear.out_features) == (inputs, 90)
            assert_close(linear(x), exact, absolute=2e-4)
            assert linear(x, wide=True).dtype == torch.float32
            assert_close(linear(x, wide=True), exact, absolute=2e-4)


@needs_library
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMAT_NAMES)
def test_a_row_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, instruction_set: str, fmt: str
) -> None:
    weight, x = stored(fmt, (97, 768)), random(210, 768, dtype=dtype, seed=1)
    linear = backend(2, instruction_set).linear.pack(weight, dtype=dtype)
    whole = linear(x)
    for tokens in (1, 2, 3, 4, 5, 6, 7, 12, 13, 31, 97, 200):
        assert same_bits(linear(x[:tokens]), whole[:tokens])
        assert same_bits(linear(x[-tokens:]), whole[-tokens:])
    for threads in (1, 3):
        other = backend(threads, instruction_set).linear.pack(weight, dtype=dtype)
        assert same_bits(other(x), whole)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMAT_NAMES)
def test_instruction_sets_with_fused_arithmetic_agree(dtype: torch.dtype, fmt: str) -> None:
    """Among the scales of Q4_1 are denormal halves, which nothing may flush."""
    weight, x = stored(fmt, (70, 512)), random(9, 512, dtype=dtype, seed=1)
    if fmt == "Q4_1":
        weight = StoredTensor(weight.format, weight.blocks.clone())
        blocks = weight.blocks.view(70, 16, 20)
        blocks[:, ::3, 0], blocks[:, ::3, 1] = 77, 0
        blocks[:, 1::3, 2], blocks[:, 1::3, 3] = 200, 128
    sets = [name for name in SETS if name != "portable"]
    results = [backend(2, name).linear.pack(weight, dtype=dtype)(x) for name in sets]
    assert all(same_bits(result, results[0]) for result in results)
    assert_close(results[0], exact_product(x, weight), absolute=2e-4)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_in_several_formats(dtype: torch.dtype) -> None:
    """As of Q4_K_M, whose values are in Q6_K, with numbers beside them."""
    x, bias = random(20, 256, dtype=dtype), random(168, dtype=dtype, seed=3)
    weights = [stored("Q4_K", (40, 256)), stored("Q4_K", (33, 256), 1), stored("Q6_K", (65, 256))]
    parts: list[Weight] = [*weights, random(30, 256, dtype=dtype, seed=5) / 5]
    exact = torch.cat([exact_product(x, part) for part in parts], dim=1) + bias.double()
    kernels: Backend
    for kernels in (backend(2), ReferenceBackend()):
        linear = kernels.linear.pack(parts, bias, dtype=dtype)
        assert linear.out_features == 168
        assert_close(linear(x), exact, absolute=1e-3)
        if kernels.name == "native":  # the definition rounds plain numbers on the way
            assert_close(linear(x, wide=True), exact, absolute=1e-3)
        with pytest.raises(ValueError, match="what dtype"):
            kernels.linear.pack(weights)
    with pytest.raises(ValueError, match="stored alike"):
        backend(2).linear.pack(weights[1:], dtype=dtype, gate="silu")


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_that_lie_in_another_order(dtype: torch.dtype) -> None:
    """As GPTQ's act order leaves them."""
    plain, x = stored("W4Z_32", (64, 256)), random(9, 256, dtype=dtype)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(3))
    weight = replace(plain, order=order)
    assert torch.equal(weight.values()[:, order], plain.values())
    kernels: Backend
    for kernels in (backend(2), ReferenceBackend()):
        wanted = kernels.linear.pack(plain, dtype=dtype)(x[:, order].contiguous())
        linear = kernels.linear.pack(weight, dtype=dtype)
        assert same_bits(linear(x), wanted)
        if kernels.name == "native":
            assert same_bits(linear(x[3:4]), wanted[3:4])
        heads = kernels.linear.heads([linear, linear])(x[:, None].expand(-1, 2, -1).contiguous())
        assert same_bits(heads[:, 1], wanted)
        both = kernels.linear.pack([weight, plain], dtype=dtype)(x)
        assert same_bits(both[:, :64], wanted)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_reaches_every_part(dtype: torch.dtype) -> None:
    """What it adds begins in one part and ends in the next."""
    parts = [stored("Q4_K", (40, 256)), stored("Q6_K", (65, 256), 1), stored("Q8_0", (30, 256))]
    low_rank = LowRank(random(3, 256, dtype=dtype) / 16, random(50, 3, dtype=dtype, seed=2), 31)
    x = random(6, 256, dtype=dtype, seed=4)
    generator = torch.Generator().manual_seed(0)
    batch = replace(
        make_batch([Row(1, 1)] * 6, 16, 64, generator),
        adapters=AdapterRows(torch.tensor([-1, 7, 7, -1, 3, 7], dtype=torch.int32)),
    )
    results = []
    for kernels in (backend(2), ReferenceBackend()):
        linear = kernels.linear.pack(parts, dtype=dtype)
        plain = linear(x, batch)
        assert same_bits(plain, linear(x))
        linear.adapt(7, linear.pack_adapter([low_rank]))
        found = linear(x, batch)
        assert same_bits(found[[0, 3, 4]], plain[[0, 3, 4]])
        assert same_bits(found[:, :31], plain[:, :31])
        assert same_bits(found[:, 81:], plain[:, 81:])
        assert (found[[1, 2, 5], 31:81] != plain[[1, 2, 5], 31:81]).any(dim=0).all()
        results.append(found.double())
    assert (results[0] - results[1]).abs().max() < (1e-3 if dtype is torch.float32 else 0.1)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", ["Q4_K", "Q6_K", "Q8_0", "IQ4_NL", "P3 fitted"])
def test_gated_blocks_have_the_bits_of_the_product(dtype: torch.dtype, fmt: str) -> None:
    halves = [stored(fmt, (48, 256)), stored(fmt, (48, 256), 1)]
    x, kernels = random(9, 256, dtype=dtype), backend(2)
    gate, up = (kernels.linear.pack(half, dtype=dtype)(x) for half in halves)
    found = kernels.linear.pack(halves, dtype=dtype, gate="silu")(x)
    exact = torch.nn.functional.silu(gate.double()) * up.double()
    assert_close(found, exact, absolute=1e-5)


@needs_library
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMAT_NAMES)
def test_rows_are_looked_up_in_their_bits(
    dtype: torch.dtype, instruction_set: str, fmt: str
) -> None:
    weight, tokens = stored(fmt, (70, 512)), torch.tensor([69, 0, 33, 32, 31, 33, 5, 64, 1])
    norm = random(512, seed=2)
    results = []
    for kernels in (backend(2, instruction_set), ReferenceBackend()):
        table = kernels.linear.pack(weight, dtype=dtype)
        x, residual = kernels.pointwise.embed(tokens, table, 1.5, norm, 1e-5)
        assert (x.dtype, residual.dtype) == (dtype, torch.float32)
        assert same_bits(residual, weight.values()[tokens] * 1.5)
        results.append(x)
    assert torch.allclose(results[0].float(), results[1].float(), rtol=1e-2, atol=1e-5)


@needs_library
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(instruction_set: str, bad: float) -> None:
    for fmt in ("Q4_1", "Q6_K", "Q8_0", "Q2_K", "IQ3_S"):
        weight, x = stored(fmt, (50, 256)), random(3, 256, dtype=torch.bfloat16, seed=1)
        linear = backend(2, instruction_set).linear.pack(weight, dtype=x.dtype)
        good = linear(x)
        x[1, 40] = bad
        found = linear(x)
        assert found[1].isnan().all()
        assert same_bits(found[[0, 2]], good[[0, 2]])


@needs_library
@pytest.mark.parametrize("fmt", FORMAT_NAMES)
def test_what_is_read_is_what_is_planned(fmt: str) -> None:
    weight = stored(fmt, (64, 512))
    linear = backend(1).linear.pack(weight, dtype=torch.bfloat16)
    assert linear.weight_bytes == kept_bytes(weight.format, 64, 64 * 512)
