"""The same GGUF file in Loire, llama.cpp and ik_llama.cpp, taking turns, as ratios.

    python benchmarks/gguf_peers.py FILE.gguf ... --llama-cpp BIN --ik-llama-cpp BIN [--turns 2]

Each turn starts every engine anew, another one first each time, and gives it four loads:

    one      a prompt of 128 tokens and 128 more in one stream: tokens per second of those
    few      4 streams, prompts of 16 tokens and 64 more: tokens per second, all together
    many     32 streams, prompts of 16 tokens and 32 more
    prefill  a prompt of 2,048 tokens: tokens per second

The others run their own llama-batched-bench (BIN is the folder that holds it), two threads as
Loire, keys and values in 16 bits in all. `benchmarks/gguf_models.py` makes files of random weights.
The machine's limits come first: bytes per second of a plain read, and what of them the weights of
one stream take. Then each run, with the time until the model was loaded and the most memory of the
process (pages of the file included, as far as they are mapped), medians, JSON last.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOADS = {"one": (128, 128, 1), "few": (16, 64, 4), "many": (16, 32, 32), "prefill": (2048, 1, 1)}
"""Tokens of a prompt, tokens after it, streams."""
KV_BYTES = 2**30
LIMIT_S = 600
_ROW = re.compile(r"^\|((?:\s*[\d.]+\s*\|){10})\s*$", re.MULTILINE)
LOADED = re.compile(r"load time\s*=\s*([\d.]+) ms")
"""Of both llama.cpp, in what they log."""


@dataclass(frozen=True, slots=True)
class Run:
    """What an engine did in one turn."""

    speeds: dict[str, float]
    """Tokens per second, by load."""
    load_s: float
    peak_bytes: int
    weight_bytes: int = 0
    """What a step of one stream reads, where the engine says so."""


def main() -> None:
    args = _arguments()
    if args.child:
        print(
            json.dumps(_limits() if args.child == "limits" else _child(args.files[0], args.loads))
        )
        return
    results = []
    for file in args.files:
        limits = of_child("limits", file, [])
        print(
            f"{file.name}: {file.stat().st_size / 1e9:.2f} GB; the machine reads "
            f"{limits['bandwidth'] / 1e9:.1f} GB/s and multiplies "
            f"{limits['flops'] / 1e12:.2f} TFLOP/s in bfloat16",
            flush=True,
        )
        runs = _turns(args, file)
        results.append(_summary(file, runs, limits["bandwidth"]))
    print(json.dumps({"results": results}))


def _turns(args: argparse.Namespace, file: Path) -> dict[str, list[Run]]:
    engines = ["Loire"]
    engines += [name for name, binary in _rivals(args).items() if binary is not None]
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    for turn in range(args.turns):
        first = turn % len(engines)
        for name in engines[first:] + engines[:first]:
            binary = _rivals(args).get(name)
            if binary is None:
                run = Run(**of_child("loire", file, args.loads))
            else:
                run = batched_bench(binary, file, args.loads)
            runs[name].append(run)
            speeds = ", ".join(f"{load} {speed:,.1f}" for load, speed in run.speeds.items())
            print(
                f"  {name:<14} {speeds} tokens/s; loaded in {run.load_s:.1f} s, "
                f"{run.peak_bytes / 1e9:.2f} GB at most",
                flush=True,
            )
    return runs


def _rivals(args: argparse.Namespace) -> dict[str, Path | None]:
    return {"llama.cpp": args.llama_cpp, "ik_llama.cpp": args.ik_llama_cpp}


def _summary(file: Path, runs: dict[str, list[Run]], bandwidth: float) -> dict[str, object]:
    """Medians of all, of Loire's speed over each other's in the same turn, and shown."""
    own = runs["Loire"]
    speeds = {
        name: {load: statistics.median(run.speeds[load] for run in found) for load in own[0].speeds}
        for name, found in runs.items()
    }
    ratios = {
        name: {
            load: statistics.median(
                a.speeds[load] / b.speeds[load] for a, b in zip(own, found, strict=True)
            )
            for load in own[0].speeds
        }
        for name, found in runs.items()
        if name != "Loire"
    }
    for name, by_load in ratios.items():
        shown = ", ".join(f"{load} {ratio:.2f}" for load, ratio in by_load.items())
        print(f"  Loire is faster than {name} by {shown}")
    share = None
    if "one" in own[0].speeds:
        share = own[0].weight_bytes * speeds["Loire"]["one"] / bandwidth
        print(f"  of the bandwidth one stream of Loire takes {share:.0%} with its weights")
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "bandwidth_bytes_per_s": bandwidth,
        "tokens_per_s": speeds,
        "loire_faster": ratios,
        "bandwidth_share": share,
        "load_s": {name: min(run.load_s for run in found) for name, found in runs.items()},
        "peak_bytes": {name: max(run.peak_bytes for run in found) for name, found in runs.items()},
    }


def of_child(what: str, file: Path, loads: list[str]) -> dict[str, Any]:
    """What a child of this script says. (This process stays small: a child's most memory is no
    less than what its parent held.)"""
    command = [sys.executable, __file__, str(file), "--child", what]
    command += ["--loads", ",".join(loads)] if loads else []
    finished = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if finished.returncode != 0:
        raise RuntimeError(f"{what} ended with {finished.returncode}:\n{finished.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def _limits() -> dict[str, float]:
    from loire.workloads.measure import measure_machine

    machine = measure_machine()
    return {"bandwidth": machine.bandwidth_bytes_per_s, "flops": machine.flops}


def _child(file: Path, loads: list[str]) -> dict[str, object]:
    """In a process of its own: what Loire does."""
    import random

    from loire import LLM, SamplingParams
    from loire.workloads.loads import plain_tokens

    started = time.perf_counter()
    llm = LLM(
        str(file),
        kv_cache_memory_bytes=KV_BYTES,
        enable_prefix_caching=False,
        max_model_len=4096,
        max_num_batched_tokens=2048,
    )
    load_s = time.perf_counter() - started
    rng = random.Random(0)
    speeds: dict[str, float] = {}

    def run(prompt: int, out: int, streams: int) -> list[tuple[float, float]]:
        """Seconds to the first token, and for each after it, of every stream."""
        tokens = llm.frontend.tokenizer.vocab_size
        prompts = [{"prompt_token_ids": plain_tokens(rng, prompt, tokens)} for _ in range(streams)]
        params = SamplingParams(temperature=0.0, max_tokens=out, ignore_eos=True)
        timings = [output.timing for output in llm.generate(prompts, params)]
        return [(timing.ttft_s or 0.0, timing.tpot_s or 0.0) for timing in timings]

    run(16, 4, 2)  # warms up
    for load in loads:
        timings = run(*LOADS[load])
        if load == "prefill":
            speeds[load] = LOADS[load][0] / timings[0][0]
        else:
            speeds[load] = len(timings) / statistics.mean(tpot for _, tpot in timings)
    return {
        "speeds": speeds,
        "load_s": load_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "weight_bytes": llm.engine.bytes_per_step,
    }


def batched_bench(folder: Path, file: Path, loads: list[str]) -> Run:
    """llama-batched-bench, a process for each load."""
    speeds: dict[str, float] = {}
    load_s: list[float] = []
    peak = 0
    for load in loads:
        prompt, out, streams = LOADS[load]
        command = [
            str(folder / "llama-batched-bench"), "-m", str(file), "-t", str(os.cpu_count() or 1),
            "-c", str(streams * (prompt + out) + 64 * streams), "-b", "2048", "-ub", "512",
            "-npp", str(prompt), "-ntg", str(out), "-npl", str(streams),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=file.parent
        )
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        row = _ROW.search(said)
        if process.returncode != 0 or row is None:
            raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{said[-2000:]}")
        numbers = [float(number) for number in row[1].split("|")[:-1]]
        speeds[load] = numbers[5] if load == "prefill" else numbers[7]
        if found := LOADED.search(said):
            load_s.append(float(found[1]) / 1000)
        peak = max(peak, usage.ru_maxrss * 1024)
    return Run(speeds, min(load_s, default=0.0), peak)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=lambda name: Path(name).resolve(), nargs="+", metavar="FILE")
    parser.add_argument("--llama-cpp", type=Path, metavar="BIN")
    parser.add_argument("--ik-llama-cpp", type=Path, metavar="BIN")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--loads", type=_loads, default=list(LOADS), help=f"of {','.join(LOADS)}")
    parser.add_argument("--child", choices=["limits", "loire"], help=argparse.SUPPRESS)
    return parser.parse_args()


def _loads(text: str) -> list[str]:
    unknown = set(text.split(",")) - set(LOADS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no load {', '.join(unknown)}; there are {list(LOADS)}")
    return [load for load in LOADS if load in text.split(",")]


if __name__ == "__main__":
    main()
