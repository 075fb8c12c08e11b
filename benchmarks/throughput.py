"""Throughput and latency of Loire against the limits of the machine.

    python benchmarks/throughput.py                          # W2 and W3 on the default model
    python benchmarks/throughput.py --load W1 --model DIR
    python benchmarks/throughput.py --workload FILE.json     # {"name", "variants": [...]}

Prints the limits first, then what was achieved, and JSON last. With several variants in a file,
the first warms up. Random prompts come from a seed, so runs can be repeated.
"""

import argparse
import json
from pathlib import Path

from loire import LLM
from loire.cli.options import add_engine_options, engine_options
from loire.workloads.bench import BenchResult, run_load
from loire.workloads.loads import Load, read_workload, standard_load
from loire.workloads.measure import measure_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--load", action="append", help="W1, W1s, W2 or W3 (repeatable)")
    parser.add_argument("--workload", action="append", type=Path, help="a workload file")
    parser.add_argument("--repeat", type=int, default=3, help="runs of a generated load [3]")
    add_engine_options(parser)
    args = parser.parse_args()

    machine = measure_machine()
    print(f"memory bandwidth   {machine.bandwidth_bytes_per_s / 1e9:8.1f} GB/s (read, all threads)")
    print(f"matrix throughput  {machine.flops / 1e9:8.1f} GFLOP/s (bfloat16)")
    with LLM(args.model, **engine_options(args)) as llm:
        print(*llm.engine.plan_lines, sep="\n")
        print(f"loaded in {llm.engine.load_s:.2f} s; kernels {llm.engine.kernels}")
        limit = machine.bandwidth_bytes_per_s / llm.engine.bytes_per_step
        print(f"decode of one stream cannot exceed {limit:.1f} tokens/s")
        results = []
        for loads in _loads(args, llm.frontend.tokenizer.vocab_size):
            for number, load in enumerate(loads):
                result = run_load(llm, load, machine)
                if number == 0 and len(loads) > 1:
                    continue  # warm-up
                print(_line(result), flush=True)
                results.append(result)
    print(
        json.dumps(
            {
                "model": args.model,
                "bandwidth_bytes_per_s": machine.bandwidth_bytes_per_s,
                "flops": machine.flops,
                "results": [result.as_dict() for result in results],
            }
        )
    )


def _loads(args: argparse.Namespace, vocab_size: int) -> list[list[Load]]:
    files = [read_workload(path) for path in args.workload or ()]
    names = args.load or ([] if files else ["W2", "W3"])
    generated = [
        [standard_load(name, vocab_size, seed) for seed in range(args.repeat + 1)] for name in names
    ]
    return files + generated


def _line(result: BenchResult) -> str:
    return (
        f"{result.name:<4} {result.wall_s:7.2f} s  {result.output_tokens_per_s:8.1f} output tok/s  "
        f"{result.total_tokens_per_s:8.1f} total tok/s  TTFT {result.ttft_s:6.3f} s  "
        f"decode {result.decode_tokens_per_s:6.1f} tok/s  batch {result.mean_batch:5.1f}  "
        f"{result.bandwidth_share:4.0%} of bandwidth, {result.compute_share:4.0%} of compute"
    )


if __name__ == "__main__":
    main()
