"""Mixtures of experts: what is chosen, against a definition in plain Python, and the grouped
products of the native kernels, against the products by themselves and the reference."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, SETS, assert_close, backend, needs_library, same_bits
from torch import Tensor

from loire.base.config import Quantization
from loire.base.errors import EngineError
from loire.checkpoint.feed_forward import Activation, ClampedSwiGLU, Routing, is_gate
from loire.kernels.block_formats import UNPACK
from loire.kernels.experts import choose_experts, compute_experts
from loire.kernels.interface import Backend, Linear, Weight
from loire.kernels.reference import ReferenceBackend
from support.blocks import stored


def random(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@dataclass(frozen=True)
class GatedMLP:
    gate_up: Linear
    down: Linear


# --- what is chosen -------------------------------------------------------------------------------


def plainly_chosen(
    logits: list[float], routing: Routing, bias: list[float] | None
) -> dict[int, float]:
    """Weights by expert, one step at a time."""
    scores = [1 / (1 + math.exp(-x)) for x in logits] if routing.scores == "sigmoid" else logits
    compared = [x + (0.0 if bias is None else bias[i]) for i, x in enumerate(scores)]
    size = len(logits) // routing.num_groups
    groups = [range(first, first + size) for first in range(0, len(logits), size)]
    counted = 2 if routing.scores == "sigmoid" else 1
    worth = [sum(sorted((compared[i] for i in g), reverse=True)[:counted]) for g in groups]
    best = sorted(range(len(groups)), key=lambda g: (-worth[g], g))[: routing.chosen_groups]
    allowed = [i for g in best for i in groups[g]]
    chosen = sorted(allowed, key=lambda i: (-compared[i], i))[: routing.top_k]
    if routing.scores == "sigmoid":
        weights = {i: scores[i] for i in chosen}
    else:
        over = chosen if routing.scores == "softmax_of_chosen" else range(len(logits))
        total = sum(math.exp(logits[i]) for i in over)
        weights = {i: math.exp(logits[i]) / total for i in chosen}
    divisor = sum(weights.values()) if routing.renormalise else 1.0
    return {i: weight / divisor * routing.scale for i, weight in weights.items()}


ROUTINGS = [
    Routing(num_experts=8, top_k=3),
    Routing(num_experts=40, top_k=7, renormalise=False, scale=1.7),
    Routing(num_experts=12, top_k=3, renormalise=False, num_groups=4, chosen_groups=2),
    Routing(num_experts=5, top_k=5, scores="softmax_of_chosen"),
    Routing(num_experts=32, top_k=4, scores="softmax_of_chosen", renormalise=False),
    Routing(num_experts=17, top_k=2, scores="sigmoid", renormalise=False, scale=0.5),
    Routing(num_experts=64, top_k=6, scores="sigmoid", scale=2.5, num_groups=8, chosen_groups=3),
    Routing(num_experts=6, top_k=2, scores="sigmoid", num_groups=6, chosen_groups=3),
]


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_chooses_as_defined(routing: Routing, with_bias: bool) -> None:
    logits = random(30, routing.num_experts, seed=3) * 3
    bias = (
        random(routing.num_experts, seed=4) if with_bias and routing.scores == "sigmoid" else None
    )
    chosen, weights = choose_experts(logits, routing, bias)
    for token in range(len(logits)):
        given_bias = None if bias is None else bias.tolist()
        expected = plainly_chosen(logits[token].tolist(), routing, given_bias)
        found = dict(zip(chosen[token].tolist(), weights[token].tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-5)


def test_equals_go_to_the_first_experts() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0, 1.0], [2.0] * 6])
    chosen, weights = choose_experts(logits, Routing(num_experts=6, top_k=2), None)
    assert chosen.tolist() == [[1, 2], [0, 1]]
    assert weights.tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_experts": 8, "top_k": 9},
        {"num_experts": 8, "top_k": 0},
        {"num_experts": 8, "top_k": 2, "num_groups": 3},
        {"num_experts": 8, "top_k": 2, "num_groups": 2, "chosen_groups": 3},
        {"num_experts": 8, "top_k": 3, "num_groups": 4, "chosen_groups": 1},
    ],
)
def test_numbers_that_do_not_go_together_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=str(wrong["num_experts"]) + "|" + str(wrong["top_k"])):
        Routing(**wrong)


# --- the native kernels' choice -------------------------------------------------------------------


def marked_experts(kernels: Backend, count: int) -> list[GatedMLP]:
    """Of 32 inputs of which the first is 1: expert e makes 1 at output e and 0 elsewhere."""
    gate_up = torch.zeros(64, 32)
    gate_up[:, 0] = 1.0
    gate_up[32:, 0] = 1 / torch.nn.functional.silu(torch.tensor(1.0))
    made = []
    for expert in range(count):
        down = torch.zeros(32, 32)
        down[expert % 32, 0] = 1.0
        made.append(GatedMLP(kernels.linear.pack(gate_up, gate="silu"), kernels.linear.pack(down)))
    return made


@needs_library
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("routing", [r for r in ROUTINGS if r.num_experts <= 32], ids=str)
def test_natively_chooses_the_same(routing: Routing, instruction_set: str) -> None:
    """Each expert writes its weight where it stands."""
    kernels = backend(2, instruction_set)
    bias = random(routing.num_experts, seed=4) if routing.scores == "sigmoid" else None
    experts = marked_experts(kernels, routing.num_experts)
    x = torch.zeros(21, 32)
    x[:, 0] = 1.0
    logits = random(21, routing.num_experts, seed=5) * 3
    found = kernels.linear.experts(experts, routing, bias)(x, logits)
    chosen, weights = choose_experts(logits, routing, bias)
    expected = torch.zeros(21, 32).scatter_(1, chosen, weights)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found != 0, expected != 0)


@needs_library
def test_logits_that_are_not_finite_stay_in_their_row() -> None:
    routing = Routing(num_experts=8, top_k=3)
    experts = backend().linear.experts(marked_experts(backend(), 8), routing)
    x = torch.zeros(5, 32)
    x[:, 0] = 1.0
    logits = random(5, 8, seed=1)
    clean = experts(x, logits)
    logits[1], logits[3, 2] = float("nan"), float("inf")
    found = experts(x, logits)
    assert found[1, :3].isnan().all()
    assert same_bits(found[[0, 2, 4]], clean[[0, 2, 4]])


# --- what they compute ----------------------------------------------------------------------------

SIZE, INTERMEDIATE, NUM_EXPERTS = 512, 256, 6
ACTIVATIONS: tuple[Activation, ...] = (
    "silu",
    "gelu_tanh",
    "squared_relu",
    ClampedSwiGLU(1.3, 0.9),
)


def packed(
    kernels: Backend,
    dtype: torch.dtype,
    *,
    fmt: str | None = None,
    quantization: Quantization | None = None,
    activation: Activation = "silu",
    with_bias: bool = False,
) -> list[GatedMLP]:
    """Experts of one kind on a backend, the same numbers on all."""
    found = []
    for expert in range(NUM_EXPERTS):

        def weight(outputs: int, inputs: int, seed: int) -> Weight:
            if fmt is not None:
                return stored(fmt, (outputs, inputs), seed, std=0.1)
            return random(outputs, inputs, seed=seed).to(dtype) * 0.1

        halves = 2 if is_gate(activation) else 1
        parts = [weight(INTERMEDIATE, SIZE, 10 * expert + part) for part in range(halves)]
        down = weight(SIZE, INTERMEDIATE, 10 * expert + 2)
        biases: list[Tensor | None] = [None, None]
        if with_bias:
            biases = [
                random(size, dtype=dtype, seed=10 * expert + 3)
                for size in (halves * INTERMEDIATE, SIZE)
            ]
        pack = kernels.linear.pack
        found.append(
            GatedMLP(
                pack(parts, biases[0], dtype=dtype, quantization=quantization, gate=activation),
                pack(down, biases[1], dtype=dtype, quantization=quantization),
            )
        )
    return found


def steered(tokens: int, seed: int = 0) -> Tensor:
    """Logits that send most tokens to the second expert and none to the last."""
    logits = random(tokens, NUM_EXPERTS, seed=seed + 50)
    logits[:, 1] += 3
    logits[:, -1] = -100
    return logits


KINDS: list[dict[str, object]] = [
    {},
    {"with_bias": True, "activation": ClampedSwiGLU(1.702, 7.0)},
    {"quantization": "int8", "with_bias": True},
    {"quantization": "int4"},
    *({"fmt": fmt} for fmt in sorted(UNPACK)),
]


@needs_library
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_has_the_bits_of_its_products(
    kind: dict[str, object], dtype: torch.dtype, instruction_set: str
) -> None:
    """Those of the definition over the same products, one expert after another."""
    kernels = backend(2, instruction_set)
    routing = Routing(num_experts=NUM_EXPERTS, top_k=2)
    experts = packed(kernels, dtype, **kind)  # type: ignore[arg-type]
    together = kernels.linear.experts(experts, routing)
    for tokens in (1, 3, 9, 70):
        x, logits = random(tokens, SIZE, dtype=dtype, seed=tokens), steered(tokens)
        chosen, weights = choose_experts(logits, routing, None)
        # (The weights of the choice are rounded elsewhere otherwise: see the test of the choice.)
        found, expected = together(x, logits), compute_experts(x, chosen, weights, experts)
        bound = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype] * float(expected.abs().max())
        assert (found - expected).abs().max() <= bound


@needs_library
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_is_close_to_the_reference(activation: Activation) -> None:
    routing = Routing(num_experts=NUM_EXPERTS, top_k=3, renormalise=False)
    x, logits = random(33, SIZE), steered(33)
    found, expected = (
        kernels.linear.experts(
            packed(kernels, x.dtype, activation=activation, with_bias=True), routing
        )(x, logits)
        for kernels in (backend(), ReferenceBackend())
    )
    assert_close(found, expected.double(), absolute=1e-6 * float(expected.abs().max()))


@needs_library
@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from([KINDS[1], KINDS[2], KINDS[3], {"fmt": "Q4_K"}, {"fmt": "MXFP4"}]),
    tokens=st.integers(1, 300),
    threads=st.sampled_from((1, 2, 3)),
)
def test_a_row_has_the_same_bits_in_any_company(
    data: st.DataObject,
    dtype: torch.dtype,
    kind: dict[str, object],
    tokens: int,
    threads: int,
) -> None:
    routing = Routing(num_experts=NUM_EXPERTS, top_k=3)
    key = str((sorted(kind.items(), key=str), dtype))
    if key not in _packed:
        _packed[key] = packed(backend(2), dtype, **kind)  # type: ignore[arg-type]
    x, logits = random(tokens, SIZE, dtype=dtype), random(tokens, NUM_EXPERTS, seed=1)
    whole = backend(2).linear.experts(_packed[key], routing)(x, logits)
    cuts = data.draw(st.sets(st.integers(1, tokens - 1), max_size=5)) if tokens > 1 else set()
    other = backend(threads).linear.experts(_packed[key], routing)
    for start, end in pairwise([0, *sorted(cuts), tokens]):
        assert same_bits(other(x[start:end], logits[start:end]), whole[start:end])


_packed: dict[str, list[GatedMLP]] = {}


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_beside_is_added_last(dtype: torch.dtype) -> None:
    routing = Routing(num_experts=NUM_EXPERTS, top_k=2)
    x, logits = random(50, SIZE, dtype=dtype), random(50, NUM_EXPERTS, seed=1)
    beside = random(50, SIZE, dtype=dtype, seed=2)
    found, expected = (
        kernels.linear.experts(packed(kernels, dtype), routing)(x, logits, beside)
        for kernels in (backend(), ReferenceBackend())
    )
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert (found - expected).abs().max() <= bound * expected.abs().max()
    mixture = backend().linear.experts(packed(backend(), dtype), routing)
    assert same_bits(mixture(x[7:9], logits[7:9], beside[7:9]), found[7:9])
    with pytest.raises(ValueError, match=r"what is added to \(50, 512\) is \(49, 512\)"):
        mixture(x, logits, beside[1:])


@needs_library
def test_no_tokens_and_wrong_ones() -> None:
    routing = Routing(num_experts=NUM_EXPERTS, top_k=2)
    linear = backend().linear
    experts = packed(backend(), torch.float32)
    mixture = linear.experts(experts, routing)
    assert mixture(random(0, SIZE), random(0, NUM_EXPERTS)).shape == (0, SIZE)
    with pytest.raises(ValueError, match=r"logits \(4, 6\), but there are 6 experts for 512"):
        mixture(random(3, SIZE), random(4, NUM_EXPERTS))
    with pytest.raises(ValueError, match="5 experts, but 6 to choose from"):
        linear.experts(experts[:5], routing)
    swapped = [*experts[:5], replace(experts[5], down=experts[5].gate_up)]
    with pytest.raises(EngineError, match="experts do not fit each other"):
        linear.experts(swapped, routing)(random(3, SIZE), random(3, NUM_EXPERTS))
