"""Gemma 4 with all it may have: the same tokens alone, together, cut, cached and preempted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.engine_runs import Tokens, each_alone, played, requests, start, usable_backend
from support.recorded_models import save

BACKENDS = [
    {"kernels": "reference", "dtype": "float32"},
    {"kernels": "native", "dtype": "bfloat16"},
    {"kernels": "native", "dtype": "bfloat16", "kv_cache_dtype": "int8"},
]


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers, of which the last three read the keys and values of the fourth and fifth."""
    return save("gemma4", tmp_path_factory.mktemp("gemma4"))


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda given: " ".join(given.values()))
def backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    return usable_backend(request)


@pytest.fixture(scope="module")
def alone(gemma4: Path, backend: dict[str, Any]) -> Tokens:
    return each_alone(gemma4, backend, requests())


@pytest.mark.parametrize("depth", [1, 2])
def test_together_and_cached(
    gemma4: Path, backend: dict[str, Any], alone: Tokens, depth: int
) -> None:
    engine = start(gemma4, backend, pipeline_depth=depth)
    kept = sum(len(group.layers) for group in engine.config.geometry.groups)
    assert kept == 5, "three layers keep nothing"
    assert played(engine, requests()) == alone
    first = sum(record.num_prefix_hit_tokens for record in engine.core.records)
    assert first > 0
    assert played(engine, requests()) == alone
    assert sum(record.num_prefix_hit_tokens for record in engine.core.records) > 3 * first


def test_preempted(gemma4: Path, backend: dict[str, Any], alone: Tokens) -> None:
    engine = start(gemma4, backend, pipeline_depth=2, max_num_seqs=2)
    given = requests()
    late = [replace(request, priority=1) for request in given[2:5]]
    assert played(engine, late, then=[*given[:2], *given[5:]]) == alone
    assert sum(record.num_preemptions for record in engine.core.records) >= 2
