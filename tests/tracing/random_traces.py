"""Traces of the real scheduler under random loads, at a simulated speed."""

import random
from dataclasses import replace

from loire.base.cache_geometry import one_group
from loire.base.config import EngineConfig, Policy
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.base.step import StepRecord
from loire.engine.core import EngineCore
from loire.scheduling.presets import build_scheduler
from loire.workloads.seven_requests import ANY_TOKEN, ConstantExecutor


def random_trace(
    seed: int,
    policy: Policy = "paged",
    *,
    depth: int = 1,
    num_requests: int = 25,
    num_blocks: int = 24,
    budget: int = 48,
) -> tuple[StepRecord, ...]:
    """Requests arrive over time; the pool is small, so that paged memory preempts."""
    config = EngineConfig(
        model="none",
        dtype="bfloat16",
        kv_cache_dtype="bfloat16",
        device="none",
        max_model_len=128,
        max_num_seqs=6,
        max_num_batched_tokens=budget,
        geometry=one_group(8),
        num_blocks=num_blocks,
        enable_prefix_caching=policy == "paged",
        policy=policy,
        reserve="max-tokens",
        pipeline_depth=1,
        seed=0,
    )
    rng = random.Random(seed)
    core = EngineCore(build_scheduler(config), ConstantExecutor(), depth=depth)
    records: list[StepRecord] = []
    arrived, now = 0, 100.0
    while core.has_work or arrived < num_requests:
        if arrived < num_requests and (rng.random() < 0.4 or not core.has_work):
            prompt = (ANY_TOKEN,) * 8 + tuple(rng.randrange(9) for _ in range(rng.randint(1, 50)))
            params = SamplingParams(max_tokens=rng.randint(1, 60))
            core.add(EngineRequest(f"request-{arrived}", prompt, params, seed=arrived))
            arrived += 1
        before = len(core.records)
        core.step()
        for record in list(core.records)[before:]:
            compute_s = rng.uniform(0.001, 0.01)
            now += compute_s + 0.0005
            records.append(replace(record, time_s=now, compute_s=compute_s))
    core.close()
    return tuple(records)
