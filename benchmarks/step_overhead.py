"""What lies between two steps: scheduling, the flat batch, and taking the results in.

    python benchmarks/step_overhead.py [--against CHECKOUT] [--turns 5]

Sequences of one length decode; no model is loaded, and a constant stands for every token. Per batch
size and context: milliseconds per step, the median of the turns. With a checkout of another version
(its own benchmarks/step_overhead.py must be there), the two take turns in processes of their own,
and the ratio old / new of each turn is given by its median. JSON last.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCHES = (1, 64, 256)
CONTEXTS = (4096, 65536)
BLOCK_SIZE = 16
NUM_STEPS = 64
KEY = "{batch} x {context}"


def seconds_per_step(batch: int, context: int) -> dict[str, float]:
    """Of scheduling, of making the flat batch, and of committing."""
    import numpy as np
    import torch

    from loire.base.cache_geometry import one_group
    from loire.base.messages import EngineRequest
    from loire.base.sampling import SamplingParams
    from loire.base.step import RowResult, StepPlan, StepResult
    from loire.execution.inputs import host_batch
    from loire.execution.tables import BlockTables
    from loire.kernels.reference_transfers import ReferenceTransfers
    from loire.memory.paged import PagedAllocator
    from loire.scheduling.batching import Continuous
    from loire.scheduling.scheduler import Scheduler

    transfers, latest = ReferenceTransfers(), torch.zeros(1, dtype=torch.int64)
    blocks_each = context // BLOCK_SIZE + NUM_STEPS
    scheduler = Scheduler(
        PagedAllocator(batch * blocks_each, one_group(BLOCK_SIZE), prefix_caching=True),
        Continuous(batch),
        max_num_batched_tokens=batch * context,
        max_model_len=context + 16 * NUM_STEPS,
        background_tokens=2,
    )
    for index in range(batch):
        prompt = tuple((np.arange(context) + index * 131071).tolist())
        params = SamplingParams(max_tokens=8 * NUM_STEPS)
        scheduler.add(EngineRequest(f"request-{index}", prompt, params, seed=index))
    tables = BlockTables()

    def compute(plan: StepPlan) -> None:
        for seq_id in plan.ended:
            tables.drop(seq_id)
        for row in plan.rows:
            for update in row.tables:
                tables.replace(row.seq_id, update.first, update.block_ids)
        of_rows = tables.of([row.seq_id for row in plan.rows])
        transfers.upload(host_batch(plan, of_rows, BLOCK_SIZE, lambda seq_id: 0), latest)

    spent = {"schedule": 0.0, "flat_batch": 0.0, "commit": 0.0}
    for step in range(-2, NUM_STEPS):
        times = [time.perf_counter()]
        plan = scheduler.schedule()
        assert plan is not None
        times.append(time.perf_counter())
        compute(plan)
        times.append(time.perf_counter())
        rows = tuple(RowResult(row.seq_id, row.epoch, (7,)) for row in plan.rows)
        result = StepResult(plan.step_id, rows, 0.0)
        times.append(time.perf_counter())
        scheduler.commit(result)
        times.append(time.perf_counter())
        if step >= 0:  # the first ones compute the prompts
            spent["schedule"] += times[1] - times[0]
            spent["flat_batch"] += times[2] - times[1]
            spent["commit"] += times[4] - times[3]
    return {part: seconds / NUM_STEPS for part, seconds in spent.items()}


def measure() -> dict[str, dict[str, float]]:
    return {
        KEY.format(batch=batch, context=context): seconds_per_step(batch, context)
        for batch in BATCHES
        for context in CONTEXTS
    }


def in_process(checkout: Path) -> dict[str, dict[str, float]]:
    script = checkout / "benchmarks" / "step_overhead.py"
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, str(script), "--once"]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, dict[str, float]] = json.loads(output.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--once", action="store_true", help="measure in this process, JSON only")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(measure()))
        return
    here, new, old = Path(__file__).parents[1], [], []
    for _ in range(arguments.turns):
        if arguments.against is not None:
            old.append(in_process(arguments.against))
        new.append(in_process(here))
    report = {}
    for key in new[0]:
        parts = {part: statistics.median(turn[key][part] for turn in new) for part in new[0][key]}
        totals = [sum(turn[key].values()) for turn in new]
        line = f"{key:12}  {statistics.median(totals) * 1e3:8.3f} ms"
        line += "".join(f"   {part} {seconds * 1e3:.3f}" for part, seconds in parts.items())
        report[key] = {"total": statistics.median(totals), **parts}
        if old:
            before = [sum(turn[key].values()) for turn in old]
            ratio = statistics.median(b / n for b, n in zip(before, totals, strict=True))
            report[key] |= {"before": statistics.median(before), "ratio": ratio}
            line += f"   before {statistics.median(before) * 1e3:.3f} ms, {ratio:.2f} times"
        print(line)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
