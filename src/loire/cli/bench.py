"""Run loads as fast as the engine can, against what the machine allows."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from loire.cli.loading import load_llm
from loire.cli.options import DEFAULT_MODEL, MODEL_HELP, add_engine_options, engine_options

if TYPE_CHECKING:
    from loire.fleet.step_costs import Work
    from loire.workloads.bench import BenchResult
    from loire.workloads.loads import Load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire bench`."""
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    parser.add_argument(
        "--load",
        action="append",
        choices=("W1", "W1s", "W2", "W3"),
        help="W1: 32 mixed requests, W1s: 128 of them, W2: one stream, W3: 16 that share a prefix "
        "(repeatable) [W2 and W3]",
    )
    parser.add_argument(
        "--workload",
        action="append",
        type=Path,
        help='a file {"name", "variants": [[{"prompt": ids, "out": tokens}]]}; the first of '
        "several variants warms up (repeatable)",
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs of a load [3]")
    parser.add_argument(
        "--save-machine",
        action="store_true",
        help="keep the measured limits of this machine for `loire plan`",
    )
    parser.add_argument(
        "--cost", type=Path, metavar="FILE", help="write what a step costs, for `loire simulate`"
    )
    parser.add_argument("--json", action="store_true", help="only JSON on stdout")
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status. Limits first, then what was achieved, JSON last."""
    from loire.checkpoint.store import loire_home
    from loire.fleet.step_costs import recorded_work
    from loire.planning.this_machine import MEASUREMENT_FILE, save_measurement
    from loire.workloads.bench import BenchResult, run_load
    from loire.workloads.measure import measure_machine

    show = sys.stderr if args.json else sys.stdout
    machine = measure_machine()
    print(f"memory bandwidth   {machine.bandwidth_bytes_per_s / 1e9:8.1f} GB/s", file=show)
    print(f"matrix throughput  {machine.flops / 1e9:8.1f} GFLOP/s (bfloat16)", file=show)
    if args.save_machine:
        save_measurement(loire_home() / MEASUREMENT_FILE, machine)
    results: list[BenchResult] = []
    steps: list[tuple[Work, float]] = []
    with load_llm(args.model, engine_options(args), quiet=args.json) as llm:
        engine, dtype = llm.engine, llm.config.dtype
        limit = machine.bandwidth_bytes_per_s / engine.bytes_per_step
        print(f"kernels {engine.kernels}, loaded in {engine.load_s:.2f} s", file=show)
        print(f"one stream cannot decode more than {limit:.1f} tokens/s", file=show)
        for loads in _loads(args, llm.frontend.tokenizer.vocab_size):
            for number, load in enumerate(loads):
                result = run_load(llm, load, machine)
                if number == 0 and len(loads) > 1:
                    continue  # warm-up
                print(_line(result), file=show, flush=True)
                results.append(result)
                steps += recorded_work(llm.records)
    if args.cost is not None:
        _write_costs(args, steps, results, engine.kernels, show)
    summary = {
        "model": args.model,
        "dtype": dtype,
        "kernels": engine.kernels,
        "load_s": engine.load_s,
        **asdict(machine),
        "results": [result.as_dict() for result in results],
    }
    print(json.dumps(summary))
    return 0


def _write_costs(
    args: argparse.Namespace,
    steps: "list[tuple[Work, float]]",
    results: "list[BenchResult]",
    kernels: str,
    show: TextIO,
) -> None:
    """Fit the costs of a step to those recorded, and keep them."""
    from loire.fleet.step_costs import fit
    from loire.workloads.measure import median

    overhead_s = median([result.step_overhead_s for result in results])
    fitted = fit(steps, overhead_s=overhead_s, source=f"{args.model}, {kernels} kernels")
    fitted.costs.save(args.cost)
    print(
        f"wrote {args.cost}: of {fitted.num_steps} steps half are told within "
        f"{fitted.typical_error:.1%}",
        file=show,
    )


def _loads(args: argparse.Namespace, vocab_size: int) -> "list[list[Load]]":
    """Per load its runs, the warm-up first."""
    from loire.workloads.loads import read_workload, standard_load

    files = [read_workload(path) for path in args.workload or ()]
    # A file with one variant is run again and again.
    repeated = [loads * (args.repeat + 1) if len(loads) == 1 else loads for loads in files]
    names = args.load or ([] if files else ["W2", "W3"])
    generated = [
        [standard_load(name, vocab_size, seed) for seed in range(args.repeat + 1)] for name in names
    ]
    return repeated + generated


def _line(result: "BenchResult") -> str:
    return (
        f"{result.name:<4} {result.wall_s:7.2f} s  {result.output_tokens_per_s:8.1f} output tok/s  "
        f"{result.total_tokens_per_s:8.1f} total tok/s  TTFT {result.ttft_s:6.3f} s  "
        f"decode {result.decode_tokens_per_s:6.1f} tok/s  batch {result.mean_batch:5.1f}  "
        f"{result.bandwidth_share:4.0%} of bandwidth, {result.compute_share:4.0%} of compute"
    )
