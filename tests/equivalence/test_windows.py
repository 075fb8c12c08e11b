"""Layers with a window hold no more than that, and nobody's tokens change for it."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loire import SamplingParams
from loire.base.messages import EngineRequest
from loire.base.step import StepRecord
from support.engine_runs import (
    BUDGET,
    Tokens,
    each_alone,
    played,
    requests,
    start,
    usable_backend,
)
from support.recorded_models import save

BACKENDS = [
    {"kernels": "reference", "dtype": "float32"},
    {"kernels": "cpu", "dtype": "float32"},
    {"kernels": "native", "dtype": "bfloat16"},
    {"kernels": "native", "dtype": "bfloat16", "kv_cache_dtype": "int8"},
]
WINDOW = 24
PAGE_LAYERS = 5
"""Layers with a window; the one that sees everything has five times the tokens in a block."""


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers with a window of 24 tokens, one without."""
    return save("gemma3", tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda given: " ".join(given.values()))
def backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    return usable_backend(request)


@pytest.fixture(scope="module")
def alone(gemma3: Path, backend: dict[str, Any]) -> Tokens:
    return each_alone(gemma3, backend, requests())


@pytest.mark.parametrize("depth", [1, 2])
def test_together_and_cached(
    gemma3: Path, backend: dict[str, Any], alone: Tokens, depth: int
) -> None:
    engine = start(gemma3, backend, pipeline_depth=depth)
    sizes = [(g.kind, len(g.layers), g.block_size) for g in engine.config.geometry.groups]
    assert sizes == [("window", 5, 16), ("full", 1, 80)]
    assert played(engine, requests()) == alone
    first = sum(record.num_prefix_hit_tokens for record in engine.core.records)
    assert first == 2 * 160, "what the last two share with the one before them, in units of 80"
    assert played(engine, requests()) == alone
    hits = sum(record.num_prefix_hit_tokens for record in engine.core.records) - first
    assert hits == 160 + 240 + 160 + 160 + 240


@pytest.mark.parametrize("caching", [True, False])
def test_preempted(gemma3: Path, backend: dict[str, Any], alone: Tokens, caching: bool) -> None:
    """Of backends, caching and steps ahead all pairs are tried, but not all triples."""
    depth = 1 + (caching + BACKENDS.index(backend)) % 2
    engine = start(
        gemma3, backend, enable_prefix_caching=caching, pipeline_depth=depth, max_num_seqs=2
    )
    given = requests()
    late = [replace(request, priority=1) for request in given[2:5]]
    assert played(engine, late, then=[*given[:2], *given[5:]]) == alone
    assert sum(record.num_preemptions for record in engine.core.records) >= 2


def test_a_window_is_all_that_is_held(gemma3: Path, backend: dict[str, Any]) -> None:
    """A long request holds its window and what is being computed, beside the layer that sees all;
    the start's check and the records count so."""
    page = start(gemma3, backend).config.geometry.page_bytes
    most = -(-(WINDOW + BUDGET) // 16) + 1
    needed = most + -(-500 // 80)
    engine = start(gemma3, backend, kv_cache_memory_bytes=needed * page, max_model_len=500)
    prompt = tuple(random.Random(5).randrange(3, 259) for _ in range(450))
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    played(engine, [EngineRequest("long", prompt, params, seed=0)])
    records: list[StepRecord] = list(engine.core.records)
    assert max(record.blocks_in_use for record in records) <= needed
    # While it decodes: three blocks of the window at most, and all of the full one.
    assert records[-2].blocks_in_use <= 3 + 7
    for record in records:
        parts = (record.kv_live_tokens, record.kv_fragmented_tokens, record.kv_reserved_tokens)
        assert sum(parts) + record.kv_idle_tokens == 16 * record.blocks_in_use
        assert min(parts) >= 0
