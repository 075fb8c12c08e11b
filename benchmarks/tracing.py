"""What it costs to keep a record of every step: time, memory, and bytes in a saved trace.

    python benchmarks/tracing.py

Per batch size: the time that the record takes per step, alone and as a share of all that the
scheduler does in a step and of a forward pass of 10 ms; the memory of one record, of all that the
engine keeps, and the bytes of one step in a file. No model is needed: only the scheduler runs.
"""

import io
import json
import statistics
import time
import tracemalloc

from loire.base.cache_geometry import one_group
from loire.base.config import EngineConfig
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.base.step import StepRecord, StepResult
from loire.engine.core import NUM_RECORDS, EngineCore
from loire.scheduling.presets import build_scheduler
from loire.scheduling.recording import StepRecorder, slot_record
from loire.tracing.storage import TraceWriter
from loire.workloads.seven_requests import ConstantExecutor

FORWARD_PASS_S = 0.010
BATCHES = (1, 32, 128)
NUM_STEPS = 400
ROUNDS = 7


def decoding_engine(batch: int) -> EngineCore:
    """An engine whose sequences have computed their prompts and go on for long."""
    config = EngineConfig(
        model="none",
        dtype="bfloat16",
        device="none",
        max_model_len=16384,
        max_num_seqs=batch,
        max_num_batched_tokens=16 * batch + 2048,
        geometry=one_group(16),
        num_blocks=batch * 1024,
        enable_prefix_caching=False,
        policy="paged",
        reserve="max-tokens",
        pipeline_depth=1,
        seed=0,
    )
    core = EngineCore(build_scheduler(config), ConstantExecutor())
    for index in range(batch):
        prompt = tuple(range(10, 26))
        params = SamplingParams(max_tokens=16000)
        core.add(EngineRequest(f"chatcmpl-{index:032x}", prompt, params, seed=index))
    core.step()
    return core


def seconds_per_step(core: EngineCore) -> float:
    """All that scheduler and engine do in a step, the record included."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(NUM_STEPS):
            core.step()
        times.append((time.perf_counter() - started) / NUM_STEPS)
    return statistics.median(times)


def seconds_per_record(core: EngineCore) -> float:
    """The record alone: what Scheduler.commit does for it."""
    scheduler, recorder = core.scheduler, StepRecorder()
    result = StepResult(0, (), 0.0)
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(NUM_STEPS):
            slots = [slot_record(s, s.slot, 0, 1) for s in scheduler.running]
            recorder.record(result, slots, scheduler.running, (), 0, scheduler.allocator)
        times.append((time.perf_counter() - started) / NUM_STEPS)
    return statistics.median(times)


def bytes_in_memory(core: EngineCore, count: int = 500) -> float:
    """Per record, as the engine keeps them."""
    scheduler, recorder = core.scheduler, StepRecorder()
    tracemalloc.start()
    kept: list[StepRecord] = []
    before, _ = tracemalloc.get_traced_memory()
    for index in range(count):
        slots = [slot_record(s, s.slot, 0, 1) for s in scheduler.running]
        result = StepResult(1000 + index, (), 0.001)
        kept.append(recorder.record(result, slots, scheduler.running, (), 0, scheduler.allocator))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / count


def bytes_in_file(core: EngineCore) -> float:
    """Per record, in a saved trace."""
    file = io.StringIO()
    writer = TraceWriter(file, "benchmark")
    writer.write(core.records[-1])  # header and names of the sequences, once
    before = file.tell()
    for record in list(core.records)[-100:]:
        writer.write(record)
    return (file.tell() - before) / 100


def main() -> None:
    print("batch  record      step without forward pass   of a 10 ms pass   in memory    in a file")
    results = []
    for batch in BATCHES:
        core = decoding_engine(batch)
        step_s, record_s = seconds_per_step(core), seconds_per_record(core)
        memory, file = bytes_in_memory(core), bytes_in_file(core)
        results.append(
            {
                "batch": batch,
                "record_us": record_s * 1e6,
                "step_us": step_s * 1e6,
                "share_of_10_ms": record_s / FORWARD_PASS_S,
                "bytes_in_memory": memory,
                "bytes_kept_by_engine": memory * NUM_RECORDS,
                "bytes_in_file": file,
            }
        )
        print(
            f"{batch:5}  {record_s * 1e6:6.1f} µs   {step_s * 1e6:7.1f} µs, "
            f"{record_s / step_s:4.0%} of it         {record_s / FORWARD_PASS_S:8.2%}      "
            f"{memory:8,.0f} B   {file:8,.0f} B   ({memory * NUM_RECORDS / 2**20:,.1f} MiB for "
            f"{NUM_RECORDS:,} records)"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
