"""Running a load as fast as the engine can, against what the machine allows."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from loire.api import LLM
from loire.base.outputs import RequestOutput
from loire.base.sampling import SamplingParams
from loire.base.step import StepRecord
from loire.engine.core import EngineCore
from loire.engine.start import Engine
from loire.planning.model_size import ModelSize, size_of_checkpoint
from loire.planning.this_machine import Measurement
from loire.workloads.loads import Load
from loire.workloads.measure import median


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One run of a load. Times in seconds, rates per second."""

    name: str
    wall_s: float
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_s: float
    """Median over the requests."""
    tpot_s: float
    """Median over the requests."""
    decode_tokens_per_s: float
    """1 / tpot_s: the speed that one stream sees."""
    steps: int
    computed_tokens: int
    cached_tokens: int
    mean_batch: float
    preemptions: int
    step_overhead_s: float
    """Mean time per step outside the forward pass and sampling."""
    bandwidth_share: float
    """Weight bytes that the steps had to read, over what memory could have given in that time."""
    compute_share: float
    """Operations of the weights that the tokens need, over what matrix units could have done."""

    def as_dict(self) -> dict[str, float | int | str]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What the steps of a run computed."""

    computed: tuple[int, ...]
    """Tokens of each step."""
    sampled: tuple[int, ...]
    """Those of them whose logits were wanted. A step without, as of prompts' beginnings, reads
    neither the head nor all of the last layer."""


def run_load(llm: LLM, load: Load, machine: Measurement) -> BenchResult:
    """Submit all requests at once (arrival times are not played) and run them to their end."""
    prompts = [{"prompt_token_ids": list(r.prompt_token_ids)} for r in load.requests]
    params = [
        SamplingParams(temperature=0.0, max_tokens=request.num_output, ignore_eos=True)
        for request in load.requests
    ]
    with _all_records(llm.engine.core) as records:
        started = time.perf_counter()
        outputs = llm.generate(prompts, params)
        wall_s = time.perf_counter() - started
    return _summarise(llm.engine, load, outputs, records, wall_s, machine)


@contextmanager
def _all_records(core: EngineCore) -> Iterator[deque[StepRecord]]:
    """The records of all steps meanwhile: an engine by itself keeps the latest ones only."""
    before, core.records = core.records, deque()
    try:
        yield core.records
    finally:
        core.records = before


def count_steps(records: Sequence[StepRecord]) -> StepCounts:
    """What the steps of a run computed, from its beginning to its end."""
    computed = [0] * len(records)
    sampled = [0] * len(records)
    in_prompt: dict[int, int] = {}
    """By sequence, its latest step, until it decodes: that step then was its prompt's last."""
    decoding: set[int] = set()
    for index, record in enumerate(records):
        for slot in record.slots:
            computed[index] += slot.num_prefill_tokens + slot.num_decode_tokens
            sampled[index] += slot.num_decode_tokens
            if slot.seq_id in decoding:
                continue
            if slot.num_decode_tokens == 0:
                in_prompt[slot.seq_id] = index
            if slot.num_decode_tokens or slot.ended:
                sampled[in_prompt[slot.seq_id]] += 1
                decoding.add(slot.seq_id)
    return StepCounts(tuple(computed), tuple(sampled))


def weight_bytes_read(engine: Engine, size: ModelSize, counts: StepCounts) -> float:
    """Bytes of weights that the steps had to read, in the formats in which they are held."""
    # What the last layer does after its keys and values: its matrices are held as the others are.
    last = size.wanted_parameters - size.head_parameters
    layers = size.step_parameters - size.head_parameters
    total = 0.0
    for computed, sampled in zip(counts.computed, counts.sampled, strict=True):
        read = engine.step_bytes(computed)
        unread = engine.head_bytes + (read - engine.head_bytes) * last / layers
        total += read if sampled else read - unread
    return total


def _summarise(
    engine: Engine,
    load: Load,
    outputs: list[RequestOutput],
    records: Sequence[StepRecord],
    wall_s: float,
    machine: Measurement,
) -> BenchResult:
    size = size_of_checkpoint(
        engine.checkpoint,
        load.name,
        dtype=engine.config.dtype,
        quantization=None,
        kv_dtype=engine.config.dtype,
        on_cpu=True,
    )
    counts = count_steps(records)
    weight_flops = size.weight_flops(sum(counts.computed), sum(counts.sampled))
    tpots = [output.timing.tpot_s for output in outputs if output.timing.tpot_s]
    ttfts = [output.timing.ttft_s for output in outputs if output.timing.ttft_s]
    tpot = median(tpots)
    num_output = sum(len(output.outputs[0].token_ids) for output in outputs)
    compute_s = sum(record.compute_s for record in records)
    read = weight_bytes_read(engine, size, counts)
    steps = len(counts.computed)
    return BenchResult(
        name=load.name,
        wall_s=wall_s,
        num_requests=len(outputs),
        prompt_tokens=load.num_prompt_tokens,
        output_tokens=num_output,
        output_tokens_per_s=num_output / wall_s,
        total_tokens_per_s=(num_output + load.num_prompt_tokens) / wall_s,
        ttft_s=median(ttfts),
        tpot_s=tpot,
        decode_tokens_per_s=1 / tpot if tpot else 0.0,
        steps=steps,
        computed_tokens=sum(counts.computed),
        cached_tokens=sum(output.num_cached_tokens for output in outputs),
        mean_batch=sum(len(record.slots) for record in records) / max(steps, 1),
        preemptions=sum(record.num_preemptions for record in records),
        step_overhead_s=(wall_s - compute_s) / max(steps, 1),
        bandwidth_share=read / machine.bandwidth_bytes_per_s / wall_s,
        compute_share=weight_flops / machine.flops / wall_s,
    )
