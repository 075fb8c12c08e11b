"""The arithmetic of `loire plan`: the talk's example, limits, monotonicity."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.base.errors import ConfigError
from loire.checkpoint.description import ModelDescription, dense_layers
from loire.checkpoint.mixers import RopeDescription
from loire.planning.capacity import (
    CapacityPlan,
    activation_reserve,
    plan_capacity,
    results_reserve,
    settle_lengths,
)
from loire.planning.devices import DEVICES, Device, find_device
from loire.planning.known_models import KNOWN_MODELS, similar_models
from loire.planning.model_size import ModelSize, size_by_hand

H100 = find_device("h100-80gb")


def described(windows: tuple[int | None, ...] = (None, None)) -> ModelDescription:
    layers = dense_layers(
        windows,
        num_heads=8,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        rope=RopeDescription(theta=10000.0, rotary_dim=16),
    )
    return ModelDescription(
        architecture="llama",
        vocab_size=1000,
        hidden_size=64,
        max_positions=4096,
        norm_eps=1e-5,
        layers=layers,
    )


def sized(description: ModelDescription) -> ModelSize:
    return ModelSize(
        name="tiny",
        num_parameters=100_000,
        weight_bytes=200_000,
        step_parameters=90_000,
        step_weight_bytes=180_000,
        head_parameters=1_000,
        kv_bytes_per_token=2 * description.kv_elements_per_token,
        description=description,
    )


def by_hand(memory: int = 80 * 10**9, **changes: int) -> CapacityPlan:
    size = size_by_hand(13 * 10**9, 10**6, dtype="float16", quantization=None)
    window = changes.pop("window", 8192)
    load = settle_lengths(window, changes.pop("prompt", None), changes.pop("output", None))
    return plan_capacity(size, replace(H100, memory_bytes=memory), load, **changes)


def test_the_talks_example() -> None:
    plan = by_hand()
    assert plan.model.weight_bytes == 26 * 10**9
    assert plan.kv_memory_bytes == 54 * 10**9
    assert plan.kv_capacity_tokens == 54_000
    assert plan.concurrent_requests == pytest.approx(6.6, abs=0.05)
    assert plan.max_batch == 6
    assert plan.decode_tokens_per_s_limit == pytest.approx(3350 / 26)


def test_break_even_is_where_the_two_times_meet() -> None:
    plan = by_hand(prompt=16, output=0)
    batch = plan.break_even_batch_with_kv
    assert batch is not None
    for size, bound_by_memory in ((math.floor(batch), True), (math.ceil(batch), False)):
        memory, compute = plan.decode_memory_s(size), plan.decode_compute_s(size)
        assert memory is not None
        assert compute is not None
        assert (memory > compute) is bound_by_memory
    # Weights alone: bytes per parameter / 2 x throughput / bandwidth.
    assert plan.break_even_batch == pytest.approx(989.4e12 / 3.35e12)


def test_long_contexts_are_never_bound_by_computing() -> None:
    plan = by_hand()
    assert plan.break_even_batch_with_kv == math.inf
    for batch in (1, 1000, 10**6):
        memory, compute = plan.decode_memory_s(batch), plan.decode_compute_s(batch)
        assert memory is not None
        assert compute is not None
        assert memory > compute


def test_a_batch_reads_the_weights_once_and_each_kv() -> None:
    plan = by_hand(prompt=1000, output=200)
    expected = (26e9 + 5 * 1100 * 1e6) / 3.35e12
    assert plan.decode_memory_s(5) == pytest.approx(expected)
    assert plan.batch_tokens_per_s_limit(5) == pytest.approx(5 / expected)


def test_unknown_speed_stays_unknown() -> None:
    unknown = replace(H100, bandwidth_bytes_per_s=None, flops=None)
    plan = plan_capacity(by_hand().model, unknown, settle_lengths(8192, None, None))
    assert plan.decode_tokens_per_s_limit is None
    assert plan.batch_tokens_per_s_limit(4) is None
    assert plan.break_even_batch is None
    assert plan.break_even_batch_with_kv is None
    assert plan.prefill_s_limit is None
    assert plan.kv_capacity_tokens == 54_000


LAST_LAYER = 64 * (2 * 128 + 3 * 128)
"""Parameters of the last layer but those of keys and values."""


def test_prefill_counts_attention_and_the_head_and_the_last_layer_once() -> None:
    description = described()
    size = sized(description)
    prompt = 10
    attention = 4 * 8 * 16 * (prompt * (prompt + 1) / 2 + prompt)
    matrices = 2 * (89_000 - LAST_LAYER) * prompt + 2 * (1_000 + LAST_LAYER)
    assert size.prefill_flops(prompt) == matrices + attention


def test_windows_bound_what_is_read_and_computed_but_not_what_is_kept() -> None:
    full = sized(described())
    local = sized(described((100, None)))
    assert local.kv_bytes_per_token == full.kv_bytes_per_token
    assert local.kv_read_bytes(100) == full.kv_read_bytes(100)
    assert local.kv_read_bytes(500) == full.kv_read_bytes(100) / 2 + full.kv_read_bytes(500) / 2
    # A prompt is the sum of its tokens: each sees at most the window, in the last layer the last.
    pairs = sum(min(i, 100) for i in range(1, 501)) + 500
    matrices = 2 * (89_000 - LAST_LAYER) * 500 + 2 * (1_000 + LAST_LAYER)
    assert local.prefill_flops(500) == matrices + 4 * 128 * pairs


def test_more_devices_than_kv_heads_repeat_them() -> None:
    size = sized(described())
    load = settle_lengths(1024, None, None)
    one, two, four = (plan_capacity(size, H100, load, tensor_parallel=n) for n in (1, 2, 4))
    assert one.kv_bytes_per_token == two.kv_bytes_per_token == size.kv_bytes_per_token
    assert four.kv_bytes_per_token == 2 * size.kv_bytes_per_token
    assert four.memory_bytes == 4 * H100.memory_bytes
    single, double = one.decode_tokens_per_s_limit, two.decode_tokens_per_s_limit
    assert single is not None
    assert double == 2 * single


@pytest.mark.parametrize("size", [3, 16, 0])
def test_a_split_that_cannot_be_is_refused_with_numbers(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"\b{size}\b"):
        plan_capacity(sized(described()), H100, settle_lengths(10, 5, 5), tensor_parallel=size)


def test_activation_reserve_is_the_stated_formula() -> None:
    description = described()
    reserve = activation_reserve(description, element_bytes=2, num_tokens=100, num_rows=4)
    # Queries 128, keys 32: 2 * 160 = 320 is less than gate, up and product: 3 * 128 = 384.
    assert reserve == 100 * 2 * (3 * 64 + 384) + 4 * 1000 * 6
    split = activation_reserve(
        description, element_bytes=2, num_tokens=100, num_rows=4, tensor_parallel=2
    )
    assert split == 100 * 2 * (3 * 64 + 192) + 4 * 1000 * 6
    # Gate and up leave their product alone: 128 numbers beside attention's 320.
    results = results_reserve(description, element_bytes=2, num_tokens=100)
    assert results == 100 * (4 * 64 + 2 * (2 * 64 + 320 + 128))


@pytest.mark.parametrize(
    ("window", "prompt", "output", "expected"),
    [
        (8192, None, None, (8192, 0)),
        (8192, 100, None, (100, 0)),
        (8192, None, 192, (8000, 192)),
        (8192, 8000, 192, (8000, 192)),
    ],
)
def test_lengths_that_were_not_given(
    window: int, prompt: int | None, output: int | None, expected: tuple[int, int]
) -> None:
    load = settle_lengths(window, prompt, output)
    assert (load.prompt, load.output) == expected


@pytest.mark.parametrize(
    ("window", "prompt", "output"), [(100, 90, 20), (100, None, 100), (0, None, None)]
)
def test_lengths_that_do_not_fit(window: int, prompt: int | None, output: int | None) -> None:
    with pytest.raises(ConfigError, match=str(window)):
        settle_lengths(window, prompt, output)


def test_a_model_that_does_not_fit_says_by_how_much() -> None:
    plan = by_hand(memory=20 * 10**9)
    assert not plan.fits
    assert plan.kv_memory_bytes == -6 * 10**9
    assert plan.kv_capacity_tokens == 0
    assert plan.concurrent_requests == 0.0


bytes_ = st.integers(10**6, 10**13)


@given(bytes_, bytes_, st.integers(1, 10**12), st.integers(1, 10**8), st.integers(1, 2**20))
@settings(deadline=None)
def test_more_memory_never_means_fewer_tokens(
    memory: int, more: int, params: int, kv: int, window: int
) -> None:
    size = size_by_hand(params, kv, dtype="bfloat16", quantization=None)
    load = settle_lengths(window, None, None)
    small, large = (
        plan_capacity(size, replace(H100, memory_bytes=total), load)
        for total in (memory, memory + more)
    )
    assert small.kv_capacity_tokens <= large.kv_capacity_tokens
    assert small.max_batch <= large.max_batch
    # What is planned fits, and one token more does not.
    for plan in (small, large):
        kv_bytes = plan.kv_capacity_tokens * kv
        if plan.kv_memory_bytes >= 0:
            assert size.weight_bytes + kv_bytes <= plan.memory_bytes
            assert size.weight_bytes + kv_bytes + kv > plan.memory_bytes


@given(st.integers(1, 10**12), st.sampled_from(["q8_0", "q5_k", "q4_0"]), st.integers(1, 4096))
@settings(deadline=None)
def test_fewer_bits_and_larger_batches_are_not_slower(
    params: int, quantization: str, batch: int
) -> None:
    load = settle_lengths(8192, 100, 100)
    plain, packed = (
        plan_capacity(size_by_hand(params, 1000, dtype="float16", quantization=q), H100, load)
        for q in (None, quantization)
    )
    assert packed.model.weight_bytes <= plain.model.weight_bytes + 1
    rates = [plain.batch_tokens_per_s_limit(size) for size in (batch, batch + 1)]
    assert rates[0] is not None
    assert rates[1] is not None
    assert rates[1] >= rates[0] * (1 - 1e-12)


def test_devices_are_known_by_name() -> None:
    assert {"h100-80gb", "h200", "a100-40gb", "a100-80gb", "l4", "l40s"} <= set(DEVICES)
    assert {"rtx-4090", "m1", "m2-pro", "m3-max", "m4-max"} <= set(DEVICES)
    for name, device in DEVICES.items():
        assert device.name == name
        assert device.source
        check_plausible(device)
    with pytest.raises(ConfigError, match=r"'h100'.*h100-80gb"):
        find_device("h100")


def check_plausible(device: Device) -> None:
    assert 10**10 < device.memory_bytes < 10**12
    assert device.bandwidth_bytes_per_s is not None
    assert 5e10 < device.bandwidth_bytes_per_s < 1e13
    # Operations per byte: a slip of a factor of 1,000 in either figure would fall outside.
    if device.flops is not None:
        assert 10 < device.flops / device.bandwidth_bytes_per_s < 1000


def test_real_models_beside_the_plan() -> None:
    opt, grouped = similar_models(13 * 10**9)
    assert opt.name == "OPT-13B"
    assert opt.kv_bytes_per_token() == 800 * 1024
    assert grouped.kv_bytes_per_token() * 4 < opt.kv_bytes_per_token()
    smallest = min(model.num_parameters for model in KNOWN_MODELS)
    assert similar_models(smallest // 10) == ()
