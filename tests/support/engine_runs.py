"""Requests of all lengths, run by an engine to their ends."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loire import SamplingParams
from loire.base.config import EngineOptions
from loire.base.messages import EngineRequest
from loire.checkpoint.open import open_checkpoint
from loire.engine.start import Engine, load_engine
from loire.kernels.native.backend import NativeBackend

BUDGET = 64
"""Tokens of a step."""

Tokens = dict[str, list[int]]


def usable_backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a fixture's parameter, which name kernels; skips where those cannot be used."""
    given: dict[str, Any] = request.param
    usable, why = NativeBackend.available()
    if given["kernels"] == "native" and not usable:
        pytest.skip(why)
    return given


def start(path: Path, backend: dict[str, Any], **options: Any) -> Engine:
    """An engine with little memory and small steps, on one thread."""
    given: dict[str, Any] = {"kv_cache_memory_bytes": 4_000_000, "max_num_batched_tokens": BUDGET}
    options = {**backend, **given, "num_threads": 1, **options}
    return load_engine(open_checkpoint(path), EngineOptions(**options), name=path.name)


def each_alone(path: Path, backend: dict[str, Any], given: Sequence[EngineRequest]) -> Tokens:
    """Each by itself, its prompt in one step, without a cache."""
    engine = start(path, backend, enable_prefix_caching=False, max_num_batched_tokens=512)
    return {name: ids for request in given for name, ids in played(engine, [request]).items()}


def requests() -> list[EngineRequest]:
    """Some share 200 tokens, some are longer than the window, some shorter; siblings, too."""
    rng = random.Random(3)
    shared = [rng.randrange(3, 259) for _ in range(200)]
    prompts = [[rng.randrange(3, 259) for _ in range(n)] for n in (5, 40, 170, 300)]
    prompts += [shared + [rng.randrange(3, 259) for _ in range(n)] for n in (1, 30, 50)]
    return [
        EngineRequest(
            request_id=str(index),
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(
                n=1 + 2 * (index == 2),
                temperature=0.8 * (index % 2),
                max_tokens=40,
                ignore_eos=True,
            ),
            seed=index,
        )
        for index, prompt in enumerate(prompts)
    ]


def played(
    engine: Engine,
    given: Sequence[EngineRequest],
    then: Sequence[EngineRequest] = (),
    *,
    after: int = 16,
) -> Tokens:
    """then: requests that come when the first ones have been computed for so many steps."""
    tokens: Tokens = {}
    for request in given:
        engine.core.add(request)
    while engine.core.has_work:
        if len(engine.core.records) == after:
            for request in then:
                engine.core.add(request)
            then = ()
        for update in engine.core.step():
            assert update.error is None
            name = f"{update.request_id} {update.choice}"
            tokens.setdefault(name, []).extend(update.token_ids)
        engine.core.scheduler.allocator.check()
    assert engine.core.scheduler.allocator.counts.in_use == 0
    return tokens
