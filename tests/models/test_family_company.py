"""Of every family: each sequence gets the same tokens alone, in a batch, preempted and cached."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, Family

from loire import SamplingParams
from loire.base.config import EngineOptions
from loire.base.messages import EngineRequest
from loire.checkpoint.open import open_checkpoint
from loire.engine.start import Engine, load_engine
from support.engine_runs import played

NUM_TOKENS = 16


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: str(family.name))
def model(request: pytest.FixtureRequest, saved_family: Callable[[Family], Path]) -> Path:
    return saved_family(request.param)


def start(path: Path, **options: Any) -> Engine:
    given = {"kernels": "auto", "dtype": "float32", "max_model_len": 160, "num_threads": 1}
    return load_engine(open_checkpoint(path), EngineOptions(**{**given, **options}), name="tiny")


def requests() -> list[EngineRequest]:
    """Some begin alike, one has siblings, one draws at random."""
    rng = random.Random(1)
    shared = [rng.randrange(3, 128) for _ in range(112)]
    prompts = [[rng.randrange(3, 128) for _ in range(n)] for n in (3, 30, 60)]
    prompts += [shared + [rng.randrange(3, 128) for _ in range(n)] for n in (1, 20)]
    return [
        EngineRequest(
            request_id=str(index),
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(
                n=1 + (index == 1),
                temperature=0.8 * (index == 1),
                max_tokens=NUM_TOKENS,
                ignore_eos=True,
            ),
            seed=index,
        )
        for index, prompt in enumerate(prompts)
    ]


def test_company_changes_nothing(model: Path) -> None:
    engine = start(model, enable_prefix_caching=False, kv_cache_memory_bytes=2**21)
    alone = {name: ids for request in requests() for name, ids in played(engine, [request]).items()}
    # A budget of 24 tokens cuts most prompts, and what is computed once is found the second time.
    engine = start(model, max_num_batched_tokens=24, kv_cache_memory_bytes=2**22)
    assert played(engine, requests()) == alone
    assert played(engine, requests()) == alone
    assert sum(record.num_prefix_hit_tokens for record in engine.core.records) >= 96
    # Who is more urgent takes the place of those that run.
    engine = start(model, max_num_seqs=2, kv_cache_memory_bytes=2**21)
    late = [replace(request, priority=1) for request in requests()[2:4]]
    assert played(engine, late, then=[*requests()[:2], requests()[4]], after=6) == alone
    assert sum(record.num_preemptions for record in engine.core.records) >= 2
