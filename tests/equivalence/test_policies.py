"""The same tokens under every policy, and what the talk's example shows of each."""

import random
from pathlib import Path
from typing import Any

import pytest

from loire import LLM, SamplingParams
from loire.base.errors import ConfigError

POLICIES: list[dict[str, Any]] = [
    {"policy": "sequential"},
    {"policy": "static"},
    {"policy": "static", "reserve": "window"},
    {"policy": "static", "max_num_batched_tokens": 16},
    {"policy": "orca"},
    {"policy": "orca", "reserve": "window"},
    {"policy": "orca", "pipeline_depth": 2},
    {"policy": "static", "pipeline_depth": 2},
    {"policy": "paged", "enable_prefix_caching": False},
    {"policy": "paged"},
]


def _llm(path: Path, **options: Any) -> LLM:
    given = {"dtype": "float32", "kv_cache_memory_bytes": 1_500_000, "max_model_len": 160}
    return LLM(str(path), **{**given, **options})


def test_same_tokens_under_every_policy(tiny_llama: Path) -> None:
    rng = random.Random(3)
    prompts = [[rng.randrange(3, 259) for _ in range(rng.randint(1, 90))] for _ in range(20)]
    params = [
        SamplingParams(
            n=1 + (i % 5 == 0), seed=i, temperature=i % 2, max_tokens=rng.randint(1, 60),
            ignore_eos=True,
        )
        for i in range(20)
    ]  # fmt: skip
    results = []
    for options in POLICIES:
        with _llm(tiny_llama, **options) as llm:
            outputs = llm.generate(prompts, params)
            results.append([[c.token_ids for c in output.outputs] for output in outputs])
            scheduler = llm.engine.core.scheduler
            scheduler.schedule()  # lets go of what a static batch still held
            assert scheduler.allocator.counts.in_use == 0
            scheduler.allocator.check()
            for record in llm.records:
                held = (
                    record.kv_live_tokens
                    + record.kv_fragmented_tokens
                    + record.kv_reserved_tokens
                    + record.kv_idle_tokens
                )
                assert held == record.blocks_in_use * 16
                assert min(record.kv_live_tokens, record.kv_reserved_tokens) >= 0
    for options, result in zip(POLICIES, results, strict=True):
        assert result == results[0], options


SEVEN = ([4, 3, 5, 2, 3, 2, 4], [3, 8, 4, 10, 4, 5, 3])
"""Prompt and output lengths: S_1 to S_4 start together, three more enter as others end."""


def _seven(path: Path, **options: Any) -> list[list[tuple[int, str, bool]]]:
    """Per step: (slot, request, ended) of each slot that is taken."""
    with _llm(path, max_num_seqs=4, **options) as llm:
        prompts = [list(range(10, 10 + length)) for length in SEVEN[0]]
        params = [
            SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in SEVEN[1]
        ]
        llm.generate(prompts, params)
        return [
            [(slot.slot, slot.request_id, slot.ended) for slot in record.slots]
            for record in llm.records
        ]


def test_static_idles_where_continuous_refills(tiny_llama: Path) -> None:
    static, continuous = _seven(tiny_llama, policy="static"), _seven(tiny_llama, policy="paged")
    # The first batch lasts as long as its longest member, and only then do the others enter.
    assert len(static) == 10 + 5
    assert {request for _, request, _ in static[9]} == {f"request-{i}" for i in range(4)}
    assert {request for _, request, _ in static[10]} == {f"request-{i}" for i in range(4, 7)}
    # S_5 takes the slot that S_1 left, in the very next step.
    assert (0, "request-0", True) in continuous[2]
    assert (0, "request-4", False) in continuous[3]
    assert len(continuous) < len(static)


def test_refusals(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="prefix caching needs blocks that can be shared"):
        _llm(tiny_llama, policy="orca", enable_prefix_caching=True)
