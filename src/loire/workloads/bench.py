"""Running a load as fast as the engine can, against what the machine allows."""

import time
from dataclasses import asdict, dataclass

from loire.api import LLM
from loire.base.outputs import RequestOutput
from loire.base.sampling import SamplingParams
from loire.base.step import StepRecord
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
    """Operations of the weights on all tokens, over what the matrix units could have done."""

    def as_dict(self) -> dict[str, float | int | str]:
        """For JSON."""
        return asdict(self)


def run_load(llm: LLM, load: Load, machine: Measurement) -> BenchResult:
    """Submit all requests at once (arrival times are not played) and run them to their end."""
    core = llm.engine.core
    core.records.clear()
    prompts = [{"prompt_token_ids": list(r.prompt_token_ids)} for r in load.requests]
    params = [
        SamplingParams(temperature=0.0, max_tokens=request.num_output, ignore_eos=True)
        for request in load.requests
    ]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    wall_s = time.perf_counter() - started
    return _summarise(llm, load, outputs, wall_s, machine)


def _summarise(
    llm: LLM, load: Load, outputs: list[RequestOutput], wall_s: float, machine: Measurement
) -> BenchResult:
    records: list[StepRecord] = list(llm.records)
    computed = sum(
        slot.num_prefill_tokens + slot.num_decode_tokens
        for record in records
        for slot in record.slots
    )
    weight_bytes = llm.engine.bytes_per_step
    # Every weight is read once per step, and takes part in two operations per token.
    num_weights = weight_bytes / (2 if llm.config.dtype != "float32" else 4)
    tpots = [output.timing.tpot_s for output in outputs if output.timing.tpot_s]
    ttfts = [output.timing.ttft_s for output in outputs if output.timing.ttft_s]
    tpot = median(tpots)
    num_output = sum(len(output.outputs[0].token_ids) for output in outputs)
    compute_s = sum(record.compute_s for record in records)
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
        steps=len(records),
        computed_tokens=computed,
        cached_tokens=sum(output.num_cached_tokens for output in outputs),
        mean_batch=sum(len(record.slots) for record in records) / max(len(records), 1),
        preemptions=sum(record.num_preemptions for record in records),
        step_overhead_s=(wall_s - compute_s) / max(len(records), 1),
        bandwidth_share=len(records) * weight_bytes / machine.bandwidth_bytes_per_s / wall_s,
        compute_share=2 * num_weights * computed / machine.flops / wall_s,
    )
