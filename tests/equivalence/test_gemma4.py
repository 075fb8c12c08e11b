"""Gemma 4 with all it may have: the same tokens alone, together, cut, cached and preempted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loire.base.config import EngineOptions
from loire.checkpoint.open import open_checkpoint
from loire.engine.start import Engine, load_engine
from loire.kernels.native.backend import NativeBackend
from support.engine_runs import Tokens, played, requests
from support.recorded_models import save

usable, why = NativeBackend.available()
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
    given: dict[str, Any] = request.param
    if given["kernels"] == "native" and not usable:
        pytest.skip(why)
    return given


def start(path: Path, backend: dict[str, Any], **options: Any) -> Engine:
    given: dict[str, Any] = {"kv_cache_memory_bytes": 4_000_000, "max_num_batched_tokens": 64}
    options = {**backend, **given, "num_threads": 1, **options}
    return load_engine(open_checkpoint(path), EngineOptions(**options), name="gemma4")


@pytest.fixture(scope="module")
def alone(gemma4: Path, backend: dict[str, Any]) -> Tokens:
    """Each by itself, its prompt in one step, without a cache."""
    engine = start(gemma4, backend, enable_prefix_caching=False, max_num_batched_tokens=512)
    return {name: ids for request in requests() for name, ids in played(engine, [request]).items()}


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
