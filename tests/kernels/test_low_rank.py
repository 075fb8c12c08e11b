"""What adapters add to products: what the definition says, by every backend; nothing to others."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from native_cases import SETS, needs_library, same_bits
from native_cases import backend as native
from torch import Tensor

from loire.base.config import Quantization
from loire.base.lora import MOST_ADAPTERS
from loire.checkpoint.feed_forward import Routing
from loire.kernels.cpu import CpuBackend
from loire.kernels.experts import choose_experts, compute_experts
from loire.kernels.interface import (
    AdapterRows,
    Backend,
    FlatBatch,
    Linear,
    LowRank,
)
from loire.kernels.reference import ReferenceBackend

DTYPES = (torch.float32, torch.bfloat16)
FORMATS: tuple[Quantization | None, ...] = (None, "int8", "int4")
NAMES = ["reference", "cpu", *SETS]
ROWS, INPUTS = 100, 70
"""Of the weight: no whole panels or steps."""


def named(name: str) -> Backend:
    if name == "reference":
        return ReferenceBackend()
    return CpuBackend() if name == "cpu" else native(2, name)


def normal(*size: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def batch_of(numbers: Sequence[int]) -> FlatBatch:
    """A batch whose tokens have these adapters; a product looks at nothing else of it."""
    count = len(numbers)
    whole = torch.arange(count)
    return FlatBatch(
        whole,
        whole,
        torch.zeros(1, 1, dtype=torch.int32),
        torch.tensor([0, count], dtype=torch.int32),
        torch.tensor([count], dtype=torch.int32),
        (count,),
        (count,),
        adapters=AdapterRows(torch.tensor(numbers, dtype=torch.int32)),
    )


def adapters(dtype: torch.dtype) -> dict[int, list[LowRank]]:
    """Of different ranks, one in several pieces; one has parts that lie apart, one two that share
    outputs."""

    def part(rank: int, first: int, outputs: int, seed: int) -> LowRank:
        down = normal(rank, INPUTS, dtype=dtype, seed=seed) * 0.2
        up = normal(outputs, rank, dtype=dtype, seed=seed + 1) * 0.3
        return LowRank(down, up, first)

    return {
        0: [part(8, 0, ROWS, 1)],
        2: [part(3, 0, 40, 3), part(5, 60, 30, 5)],
        7: [part(1, 10, 80, 7), part(36, 20, 20, 9)],
    }


def exact_addition(x: Tensor, parts: Sequence[LowRank]) -> Tensor:
    """float64 [T, ROWS]."""
    added = torch.zeros(len(x), ROWS, dtype=torch.float64)
    for part in parts:
        outputs = slice(part.first, part.first + len(part.up))
        added[:, outputs] += x.double() @ part.down.double().T @ part.up.double().T
    return added


def prepared(
    kernels: Backend,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    gate: Literal["silu"] | None = None,
    *,
    adapted: bool = True,
) -> Linear:
    weight = normal(ROWS, INPUTS, dtype=dtype, seed=20) * 0.2
    bias = normal(ROWS, dtype=dtype, seed=21)
    linear = kernels.linear.pack(weight, bias, quantization=quantization, gate=gate)
    for number, parts in adapters(dtype).items() if adapted else ():
        linear.adapt(number, linear.pack_adapter(parts))
    return linear


def mixed(count: int, seed: int = 0) -> list[int]:
    """Numbers of tokens: adapters, none, and ones that this weight has nothing of."""
    rng = random.Random(seed)
    return [rng.choice((-1, -1, 0, 2, 7, 1, 900)) for _ in range(count)]


@pytest.mark.parametrize("tokens", [1, 5, 37])
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_adds_what_the_definition_says(
    name: str, dtype: torch.dtype, quantization: Quantization | None, tokens: int
) -> None:
    kernels = named(name)
    x, numbers = normal(tokens, INPUTS, dtype=dtype, seed=30), [0, *mixed(tokens - 1)]
    plain = prepared(kernels, dtype, quantization, adapted=False)(x, wide=True)
    linear = prepared(kernels, dtype, quantization)
    found = linear(x, batch_of(numbers), wide=True)
    eps = torch.finfo(torch.float32 if name in SETS else dtype).eps
    for token, number in enumerate(numbers):
        parts = adapters(dtype).get(number)
        if parts is None:
            assert torch.equal(found[token], plain[token])
            continue
        added = exact_addition(x[token : token + 1], parts)[0]
        assert added.abs().max() > 0.01, "the case shows nothing"
        error = (found[token].double() - plain[token].double() - added).abs().max()
        assert error <= 8 * eps * (1 + plain[token].abs().max())
    assert torch.equal(linear(x), plain.to(dtype)), "without a batch nobody has an adapter"
    rounded = linear(x, batch_of(numbers))
    assert rounded.dtype == dtype
    torch.testing.assert_close(rounded, found.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_within_gates_before_the_activation(name: str, dtype: torch.dtype) -> None:
    kernels = named(name)
    x, numbers = normal(9, INPUTS, dtype=dtype, seed=31), [0, 2, 7, *mixed(6, seed=3)]
    both = prepared(kernels, dtype)(x, batch_of(numbers))
    gate, up = both.float().chunk(2, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    found = prepared(kernels, dtype, gate="silu")(x, batch_of(numbers))
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
    plain = prepared(kernels, dtype, gate="silu", adapted=False)(x)
    without = [token for token, number in enumerate(numbers) if number not in (0, 2, 7)]
    assert torch.equal(found[without], plain[without])
    assert not torch.allclose(found[:3].float(), plain[:3].float(), atol=0.02)


@needs_library
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SETS)
def test_a_token_has_the_same_bits_in_any_company(
    name: str, dtype: torch.dtype, quantization: Quantization | None
) -> None:
    """With an adapter and without, however many tokens there are and whoever computes them."""
    linear = prepared(native(2, name), dtype, quantization)
    other = prepared(native(1, name), dtype, quantization)
    x, numbers = normal(210, INPUTS, dtype=dtype, seed=32), mixed(210, seed=1)
    whole = linear(x, batch_of(numbers))
    assert same_bits(other(x, batch_of(numbers)), whole)
    for size in (1, 2, 7, 40):
        for first in range(0, 60, size):
            some = slice(first, first + size)
            found = linear(x[some].contiguous(), batch_of(numbers[some]))
            assert same_bits(found, whole[some])
    without = [token for token, number in enumerate(numbers) if number in (-1, 1, 900)]
    plain = prepared(native(2, name), dtype, quantization, adapted=False)(x)
    assert same_bits(plain[without], whole[without])


@dataclass(frozen=True)
class Expert:
    gate_up: Linear
    down: Linear


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SETS)
def test_products_that_are_handed_out_together(name: str, dtype: torch.dtype) -> None:
    """Heads have the bits of their products, a token those that it has alone, and one without an
    adapter those without any; experts make of them what the definition does."""
    kernels = native(2, name)

    def product(seed: int, *, gated: bool = False, adapted: bool = True) -> Linear:
        rows = 2 * INPUTS if gated else INPUTS
        weight = normal(rows, INPUTS, dtype=dtype, seed=seed) * 0.2
        linear = kernels.linear.pack(weight, gate="silu" if gated else None)
        for number, rank in ((0, 8), (2, 40), (7, 1)) if adapted else ():
            down = normal(rank, INPUTS, dtype=dtype, seed=seed + rank) * 0.1
            up = normal(rows, rank, dtype=dtype, seed=seed + rank + 1) * 0.3
            linear.adapt(number, linear.pack_adapter([LowRank(down, up)]))
        return linear

    count, numbers = 90, mixed(90, seed=4)
    without = [token for token, number in enumerate(numbers) if number in (-1, 1, 900)]
    heads = [product(100 * head) for head in range(3)]
    x = normal(count, 3, INPUTS, dtype=dtype, seed=40)
    found = kernels.linear.heads(heads)(x, batch=batch_of(numbers))
    for head, linear in enumerate(heads):
        own = linear(x[:, head].contiguous(), batch_of(numbers))
        assert same_bits(found[:, head].contiguous(), own)
    experts, plain = (
        [Expert(product(seed, gated=True, adapted=a), product(seed + 1, adapted=a))
         for seed in range(1000, 1005)]
        for a in (True, False)
    )  # fmt: skip
    routing, given = Routing(num_experts=5, top_k=2), x[:, 0].contiguous()
    logits = normal(count, 5, dtype=torch.float32, seed=41)
    together = kernels.linear.experts(experts, routing)
    whole = together(given, logits, batch=batch_of(numbers))
    chosen, weights = choose_experts(logits, routing, None)
    expected = compute_experts(given, chosen, weights, experts, batch=batch_of(numbers))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert (whole - expected).abs().max() <= tolerance * expected.abs().max()
    bare = kernels.linear.experts(plain, routing)(given, logits)
    assert same_bits(whole[without], bare[without])
    assert not torch.allclose(whole.float(), bare.float(), atol=0.1), "the case shows something"
    for token in range(0, count, 7):
        one = slice(token, token + 1)
        alone = together(given[one], logits[one], batch=batch_of(numbers[one]))
        assert same_bits(alone, whole[one])


@pytest.mark.parametrize("name", NAMES)
def test_adapters_come_and_go(name: str) -> None:
    kernels, dtype = named(name), torch.float32
    linear = prepared(kernels, dtype)
    x = normal(3, INPUTS, dtype=dtype, seed=33)
    first = linear(x, batch_of([0, 2, -1]))
    linear.adapt(0, linear.pack_adapter(adapters(dtype)[7]))
    second = linear(x, batch_of([0, 2, -1]))
    assert torch.equal(second[1:], first[1:])
    assert torch.equal(second[:1], linear(x, batch_of([7, 2, -1]))[:1])
    for number in (0, 2, 7):
        linear.adapt(number, None)
    gone = linear(x, batch_of([0, 2, 7]))
    assert torch.equal(gone, prepared(kernels, dtype, adapted=False)(x))


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    linear = prepared(named(name), torch.float32)
    good = adapters(torch.float32)[0][0]
    with pytest.raises(ValueError, match=f"from 0 to {MOST_ADAPTERS - 1}, not {MOST_ADAPTERS}"):
        linear.adapt(MOST_ADAPTERS, linear.pack_adapter([good]))
    with pytest.raises(ValueError, match="100 x 8 times 8 x 70 from output 1 on does not fit"):
        linear.pack_adapter([LowRank(good.down, good.up, 1)])
    with pytest.raises(ValueError, match="does not fit a weight of 100 x 70"):
        linear.pack_adapter([LowRank(good.down[:, 1:], good.up)])
    with pytest.raises(ValueError, match="bfloat16"):
        linear.pack_adapter([LowRank(good.down.bfloat16(), good.up)])
