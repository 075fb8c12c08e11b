"""resolve(): pure arithmetic from options and circumstances to a configuration."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loire.base.cache_geometry import LayerNeed
from loire.base.config import (
    BLOCK_SIZES,
    EngineConfig,
    EngineOptions,
    MachineFacts,
    ModelFacts,
    resolve,
)
from loire.base.errors import CapacityError, ConfigError

MODEL = ModelFacts(
    name="m",
    max_positions=4096,
    default_window=2048,
    cache_needs=(LayerNeed("full", 200),),
)
BLOCK_BYTES = 100 * 2 * 16


def settled(available: int = 10**9, **options: Any) -> EngineConfig:
    """The configuration for bfloat16."""
    machine = MachineFacts(device="cpu", available_memory_bytes=available)
    return resolve(EngineOptions(**options), "bfloat16", MODEL, machine)


def test_defaults() -> None:
    config = settled()
    assert config.max_model_len == 2048
    assert config.kv_bytes_per_token == 200
    assert config.num_blocks == 128 * 2048 // 16, "no more than all sequences can fill"
    assert config.enable_prefix_caching
    assert (config.policy, config.pipeline_depth) == ("paged", 1)


def test_the_kv_cache_has_the_models_dtype_unless_asked_otherwise() -> None:
    assert settled().kv_cache_dtype == "bfloat16"
    assert settled(kv_cache_dtype="int8").kv_cache_dtype == "int8"


def test_the_pool_takes_half_of_what_is_available_or_what_is_asked_for() -> None:
    assert settled(available=8_000_000).num_blocks == 4_000_000 // BLOCK_BYTES
    config = settled(kv_cache_memory_bytes=1_000_000)
    assert config.num_blocks == 1_000_000 // BLOCK_BYTES
    assert config.kv_pool_bytes <= 1_000_000


def test_the_tensors_of_a_step_are_reserved_before_the_pool() -> None:
    facts = MachineFacts(device="cpu", available_memory_bytes=8_000_000, activation_bytes=2_000_000)
    config = resolve(EngineOptions(), "bfloat16", MODEL, facts)
    assert config.num_blocks == 3_000_000 // BLOCK_BYTES
    tight = MachineFacts(device="cpu", available_memory_bytes=10**6, activation_bytes=10**6)
    with pytest.raises(CapacityError, match=r"1.0 MiB are available, .* take 1.0 MiB"):
        resolve(EngineOptions(), "bfloat16", MODEL, tight)


def test_the_default_window_shrinks_to_what_fits_and_an_asked_one_does_not() -> None:
    small = 2 * 50 * BLOCK_BYTES
    assert settled(available=small).max_model_len == 50 * 16
    with pytest.raises(CapacityError, match=r"max_model_len = 2048 .* needs 128 KV blocks"):
        settled(available=small, max_model_len=2048)
    with pytest.raises(CapacityError, match=r"lower max_model_len to at most 800"):
        settled(kv_cache_memory_bytes=50 * BLOCK_BYTES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 4097}, "at most 4096 positions"),
        ({"max_model_len": 0}, "max_model_len must be at least 1"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, but is 0"),
        ({"max_num_batched_tokens": -5}, "max_num_batched_tokens must be at least 1, but is -5"),
        ({"num_threads": 0}, "num_threads"),
        ({"block_size": 17}, r"block_size must be one of \(8, 16, 32, 64, 128\), but is 17"),
        ({"pipeline_depth": 3}, "pipeline_depth must be 1 or 2, but is 3"),
        ({"policy": "orca", "enable_prefix_caching": True}, "not with 'orca'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settled(**options)


def test_prefix_caching_is_off_where_memory_is_reserved() -> None:
    for policy in ("sequential", "static", "orca"):
        assert not settled(policy=policy).enable_prefix_caching


@given(
    available=st.integers(0, 10**9),
    kv_memory=st.one_of(st.none(), st.integers(0, 10**8)),
    window=st.one_of(st.none(), st.integers(1, 4096)),
    block_size=st.sampled_from(BLOCK_SIZES),
    sequences=st.integers(1, 300),
)
def test_one_full_window_always_fits(
    available: int, kv_memory: int | None, window: int | None, block_size: int, sequences: int
) -> None:
    try:
        config = settled(
            available=available,
            kv_cache_memory_bytes=kv_memory,
            max_model_len=window,
            block_size=block_size,
            max_num_seqs=sequences,
        )
    except CapacityError:
        return
    assert config.kv_pool_tokens >= config.max_model_len >= 1
    assert window in (None, config.max_model_len)
    limit = available // 2 if kv_memory is None else kv_memory
    assert config.kv_pool_bytes <= limit
