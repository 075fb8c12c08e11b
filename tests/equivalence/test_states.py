"""Models with states: nobody's tokens change by company, chunks, snapshots or preemption."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loire import SamplingParams
from loire.base.messages import EngineRequest
from loire.memory.state_group import LEAST_APART
from support.engine_runs import Tokens, each_alone, played, start, usable_backend
from support.recorded_models import save

BACKENDS = [
    {"kernels": "reference", "dtype": "float32"},
    {"kernels": "cpu", "dtype": "float32"},
    {"kernels": "native", "dtype": "float32"},
    {"kernels": "native", "dtype": "bfloat16"},
    {"kernels": "native", "dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"},
    {"model": "nemotron_h", "kernels": "native", "dtype": "bfloat16"},
]


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda given: " ".join(given.values()))
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return usable_backend(request)


@pytest.fixture(scope="module")
def hybrid(case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three gated delta nets, one attention between them; or two Mamba-2, attention, experts."""
    model = case.get("model", "qwen3_5")
    return save(model, tmp_path_factory.mktemp(model))


@pytest.fixture(scope="module")
def backend(case: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key != "model"}


def requests() -> list[EngineRequest]:
    """Some share 100 tokens; of any length; siblings, too."""
    rng = random.Random(3)
    shared = [rng.randrange(3, 259) for _ in range(100)]
    prompts = [[rng.randrange(3, 259) for _ in range(n)] for n in (1, 5, 40, 90, 200)]
    prompts += [shared + [rng.randrange(3, 259) for _ in range(n)] for n in (1, 30, 50)]
    return [
        EngineRequest(
            request_id=str(index),
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(
                n=1 + 2 * (index in (1, 3)),
                temperature=0.8 * (index % 2),
                max_tokens=24,
                ignore_eos=True,
            ),
            seed=index,
        )
        for index, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def alone(hybrid: Path, backend: dict[str, Any]) -> Tokens:
    return each_alone(hybrid, backend, requests())


@pytest.mark.parametrize("depth", [1, 2])
def test_together_and_cached(
    hybrid: Path, backend: dict[str, Any], alone: Tokens, depth: int
) -> None:
    engine = start(hybrid, backend, pipeline_depth=depth)
    geometry = engine.config.geometry
    assert [group.kind for group in geometry.groups] == ["full", "state"]
    unit = geometry.unit
    # The convolution's array must fit a page: it is wider in Mamba-2, and a page has half the bytes
    # if KV is in codes.
    wide = hybrid.name.startswith("nemotron_h") or backend.get("kv_cache_dtype") == "int8"
    assert unit == (32 if wide else 16)
    assert played(engine, requests()) == alone
    first = sum(record.num_prefix_hit_tokens for record in engine.core.records)
    assert first >= 2 * 96, "what the last two share with the one before them"
    assert played(engine, requests()) == alone
    hits = sum(record.num_prefix_hit_tokens for record in engine.core.records) - first
    wanted = [(len(r.prompt_token_ids) - 1) // unit * unit for r in requests()]
    assert hits >= sum(wanted), "every prompt's snapshot is found again"


@pytest.mark.parametrize("caching", [True, False])
def test_preempted(
    case: dict[str, Any], hybrid: Path, backend: dict[str, Any], alone: Tokens, caching: bool
) -> None:
    """Of backends, caching and steps ahead all pairs are tried, but not all triples."""
    depth = 1 + (caching + BACKENDS.index(case)) % 2
    engine = start(
        hybrid,
        backend,
        enable_prefix_caching=caching,
        pipeline_depth=depth,
        max_num_seqs=2,
        max_num_batched_tokens=24,
    )
    given = requests()
    late = [replace(request, priority=1) for request in given[2:5]]
    assert played(engine, late, then=[*given[:2], *given[5:]], after=12) == alone
    assert sum(record.num_preemptions for record in engine.core.records) >= 2


def test_little_memory(hybrid: Path, backend: dict[str, Any], alone: Tokens) -> None:
    """There is room for two or three sequences; some are preempted for want of pages."""
    geometry = start(hybrid, backend).config.geometry
    pages = geometry.pages_for(256, 64) * 5 // 2
    engine = start(
        hybrid,
        backend,
        kv_cache_memory_bytes=pages * geometry.page_bytes,
        max_model_len=256,
    )
    assert played(engine, requests()) == alone


def test_drafted(hybrid: Path, backend: dict[str, Any], alone: Tokens) -> None:
    """States go on behind what was accepted, and are had again from before what was not."""
    engine = start(hybrid, backend)
    prompts = {request.request_id: list(request.prompt_token_ids) for request in requests()}
    texts = [prompts[name.split()[0]] + tokens for name, tokens in alone.items()]

    def drafter(token_ids: Sequence[int], most: int) -> Sequence[int]:
        """What comes, with every fifth token wrong."""
        length = len(token_ids)
        follow = next((t[length:] for t in texts if t[:length] == token_ids), [])
        return [4 if (length + i) % 5 == 0 else t for i, t in enumerate(follow[: min(most, 4)])]

    engine.core.scheduler.drafter = drafter
    assert played(engine, requests()) == alone
    slots = [slot for record in engine.core.records for slot in record.slots]
    assert sum(slot.num_decode_tokens > 1 for slot in slots) > 20


def test_conversations_compute_only_what_is_new(hybrid: Path, backend: dict[str, Any]) -> None:
    """Three conversations that are answered in turns: from the second turn on each prompt's
    beginning is found, up to the newest state that was kept: of the answer, or of the prompt."""
    engine = start(hybrid, backend, max_num_batched_tokens=128, kv_cache_memory_bytes=16_000_000)
    rng = random.Random(9)
    talks = [[rng.randrange(3, 259) for _ in range(100 + 11 * i)] for i in range(3)]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    kept, unit = [0] * len(talks), engine.config.geometry.unit
    for turn in range(3):
        for index, talk in enumerate(talks):
            before = len(engine.core.records)
            request = EngineRequest(f"{turn} {index}", tuple(talk), params, seed=0)
            [answer] = played(engine, [request]).values()
            records = list(engine.core.records)[before:]
            computed = sum(slot.num_prefill_tokens for r in records for slot in r.slots)
            assert computed == len(talk) - kept[index], "only what comes after the last snapshot"
            kept[index] = max(
                (len(talk) - 1) // unit * unit,
                (len(talk) + len(answer) - 1) // LEAST_APART * LEAST_APART,
            )
            talk += [*answer, *(rng.randrange(3, 259) for _ in range(20))]
