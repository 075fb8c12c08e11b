"""Run one load through the batching policies, on one loaded model and one KV memory."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loire.base.units import parse_tokens
from loire.cli.options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    add_engine_options,
    argument_type,
    engine_options,
)
from loire.cli.progress import ProgressBars

if TYPE_CHECKING:
    from loire.engine.start import Engine
    from loire.workloads.compare import Comparison
    from loire.workloads.loads import Load
    from loire.workloads.metrics import PolicyReport

POLICIES = ("sequential", "static", "orca", "paged", "paged+prefix")
_DECIDED = (
    *("--policy", "--enable-prefix-caching", "--kv-cache-memory"),
    *("--pipeline-depth", "--engine-seed"),
)
_EPILOG = """\
Every request declares --cap as its max_tokens and ends at a length of its own, which no policy
can see. The experiment: prompts of 256 tokens, outputs exponential around 128 under a cap of 1,536,
all at once, KV memory for 8 full windows, and orca and static reserve full windows. Without --json
and without a flag of the load, all lengths are a quarter of that: a minute instead of four.

  loire compare --html report.html
  loire compare --requests 32 --html report.html
  loire compare --cap 128 --max-model-len 1792 --reserve max-tokens
  loire compare --trace AzureLLMInferenceTrace_conv.csv --every 300 --speed 20 --policies orca,paged
"""


_Columns = Mapping[str, "Callable[[PolicyReport], str]"]


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a synthetic load: requests, and tokens of each."""

    requests: int
    prompt: int
    output: int
    cap: int


_EXPERIMENT = _Size(requests=32, prompt=256, output=128, cap=1536)
_SMALL = _Size(requests=48, prompt=64, output=32, cap=384)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire compare`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    tokens = argument_type(parse_tokens)
    lengths = ("fixed", "uniform", "exponential")
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    add = parser.add_argument
    add("--policies", default=",".join(POLICIES), help="a list with commas [all five]")
    add("--html", type=Path, metavar="OUT", help="write a page with plots and timelines")
    add("--save-trace", type=Path, metavar="OUT", help="keep the steps for `loire trace`")
    add("--json", action="store_true", help="only JSON on stdout")
    load = parser.add_argument_group("load")
    add = load.add_argument
    add("--requests", type=int, help="[32]")
    add("--prompt", type=tokens, help="mean length of prompts [256]")
    add("--prompt-lengths", choices=lengths, default="fixed", help="[fixed]")
    add("--output", type=tokens, help="mean length of outputs [128]")
    add("--output-lengths", choices=lengths, default="exponential", help="[exponential]")
    add("--cap", type=tokens, help="max_tokens that requests declare [1536]")
    add("--shared", type=tokens, default=0, help="leading tokens that all prompts share [0]")
    add("--rate", type=float, help="requests per second, as a Poisson process [all at once]")
    add("--seed", type=int, default=0, help="of lengths, arrivals and tokens [0]")
    add("--trace", type=Path, metavar="FILE", help="lengths and times of a recorded trace")
    add("--first", type=int, metavar="N", help="only the first requests of the trace")
    add("--every", type=int, default=1, metavar="N", help="only every Nth of them [1]")
    add("--speed", type=float, default=1.0, help="plays the trace that many times faster [1]")
    add("--ttft-slo", type=float, default=5.0, help="seconds to the first token [5]")
    add("--tpot-slo", type=float, default=0.2, help="seconds per token after it [0.2]")
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--kv-windows", type=float, default=8.0, help="KV memory, in full windows [8]"
    )
    add_engine_options(parser, without=_DECIDED)


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    from loire.workloads.compare import compare
    from loire.workloads.metrics import Objective

    small = _settle_size(args)
    engine = _start(args)
    load = _load(args, engine)
    with ProgressBars(times="elapsed", quiet=args.json) as progress:
        comparison = compare(
            engine,
            load,
            args.policies.split(","),
            cap=args.cap,
            reserve=args.reserve or "window",
            objective=Objective(args.ttft_slo, args.tpot_slo),
            progress=progress.update,
        )
    description = _description(args, engine, load)
    if args.save_trace is not None:
        from loire.tracing.storage import Trace, write_traces

        steps = comparison.records.items()
        write_traces(args.save_trace, [Trace(name, tuple(records)) for name, records in steps])
    if args.html is not None:
        from loire.workloads.comparison_page import comparison_page

        args.html.write_text(comparison_page(comparison, description), encoding="utf-8")
    if args.json:
        print(json.dumps(_as_json(args, engine, comparison)))
    else:
        _print(comparison, description)
        if small:
            print(
                "\nA small version, lengths a quarter of the experiment's: "
                f"--requests {_EXPERIMENT.requests} runs that."
            )
    return 0


def _settle_size(args: argparse.Namespace) -> bool:
    """Fill in what was not given of the load's size; whether that made it the small version."""
    given = (args.requests, args.prompt, args.output, args.cap, args.rate, args.trace)
    small = not (args.json or args.shared or any(value is not None for value in given))
    size = _SMALL if small else _EXPERIMENT
    for field in fields(size):
        if getattr(args, field.name) is None:
            setattr(args, field.name, getattr(size, field.name))
    return small


def _start(args: argparse.Namespace) -> "Engine":
    from loire.base.config import EngineOptions
    from loire.checkpoint.open import open_checkpoint
    from loire.checkpoint.store import resolve_model
    from loire.engine.start import start_engine

    given = engine_options(args)
    given.pop("reserve", None)
    block = given.setdefault("block_size", 16)
    dtype = given.get("dtype", "auto")
    description = open_checkpoint(resolve_model(args.model)).description
    longest = args.prompt if args.prompt_lengths == "fixed" else 2 * args.prompt
    fits = description.default_window if args.trace is not None else longest + args.cap
    window = given.setdefault("max_model_len", fits)
    kept = given.get("kv_cache_dtype", "auto")
    held = next((name for name in (kept, dtype) if name != "auto"), "bfloat16")
    token_bytes = description.kv_bytes_per_token(held)
    blocks = round(args.kv_windows * -(-window // block))
    given["kv_cache_memory_bytes"] = blocks * block * token_bytes
    return start_engine(args.model, EngineOptions(**given))


def _load(args: argparse.Namespace, engine: "Engine") -> "Load":
    import random

    from loire.workloads.loads import draw_lengths, synthetic
    from loire.workloads.traces import read_trace, trace_load

    vocab_size = engine.frontend().tokenizer.vocab_size
    if args.trace is not None:
        entries = read_trace(args.trace)[: args.first : args.every]
        return trace_load(
            args.trace.name,
            entries,
            vocab_size=vocab_size,
            max_model_len=engine.config.max_model_len,
            max_output=args.cap,
            speed=args.speed,
            seed=args.seed,
        )
    rng, count = random.Random(args.seed), args.requests
    most = engine.config.max_model_len - args.cap
    return synthetic(
        f"{args.output_lengths} outputs",
        num_requests=count,
        prompt_lengths=draw_lengths(rng, args.prompt_lengths, count, args.prompt, 1, most),
        output_lengths=draw_lengths(rng, args.output_lengths, count, args.output, 1, args.cap),
        vocab_size=vocab_size,
        seed=args.seed + 1,
        arrival_rate=args.rate,
        num_shared=args.shared,
    )


def _description(args: argparse.Namespace, engine: "Engine", load: "Load") -> str:
    config = engine.config
    return (
        f"{config.model} in {config.dtype} on {engine.kernels} kernels; {load.name}: "
        f"{len(load.requests)} requests, {load.num_prompt_tokens:,} prompt and "
        f"{load.num_output_tokens:,} output tokens, cap {args.cap:,}; KV memory of "
        f"{config.kv_pool_tokens:,} tokens in blocks of {config.block_size}, reserve "
        f"{args.reserve or 'window'}; {config.max_num_batched_tokens:,} tokens per step"
    )


def _as_json(
    args: argparse.Namespace, engine: "Engine", comparison: "Comparison"
) -> dict[str, Any]:
    def entry(report: "PolicyReport") -> dict[str, Any]:
        return {
            **asdict(report),
            "speedup_over_sequential": comparison.speedup(report.name, "sequential"),
            "speedup_over_static": comparison.speedup(report.name, "static"),
        }

    return {
        "model": args.model,
        "kernels": engine.kernels,
        "requests": len(comparison.load.requests),
        "prompt_tokens": comparison.load.num_prompt_tokens,
        "output_tokens": comparison.load.num_output_tokens,
        "cap": comparison.cap,
        "kv_pool_tokens": engine.config.kv_pool_tokens,
        "objective": asdict(comparison.objective),
        "policies": [entry(report) for report in comparison.reports],
    }


def _print(comparison: "Comparison", description: str) -> None:
    from rich.console import Console
    from rich.table import Table

    def ratio(report: "PolicyReport", over: str) -> str:
        value = comparison.speedup(report.name, over)
        return "" if value is None else f"{value:.2f}"

    speed: _Columns = {
        "": lambda r: r.name,
        "tok/s": lambda r: f"{r.output_tokens_per_s:,.0f}",
        "x seq.": lambda r: ratio(r, "sequential"),
        "x static": lambda r: ratio(r, "static"),
        "steps": lambda r: f"{r.steps:,}",
        "batch": lambda r: f"{r.mean_batch:.1f}",
        "TTFT s": lambda r: f"{r.ttft_s.p50:.2f} {r.ttft_s.p95:6.2f}",
        "ms/token": lambda r: f"{r.tpot_s.p50 * 1000:.0f} {r.tpot_s.p95 * 1000:5.0f}",
    }
    memory: _Columns = {
        "slots held": lambda r: r.name,
        "live": lambda r: f"{r.kv_live_share:.0%}",
        "reserved": lambda r: f"{r.kv_reserved_share:.0%}",
        "ended": lambda r: f"{r.kv_idle_share:.0%}",
        "unused": lambda r: f"{r.kv_fragmented_share:.0%}",
        "of pool": lambda r: f"{r.kv_pool_share:.0%}",
        "hits": lambda r: f"{r.prefix_hit_rate:.0%}",
        "preempt.": lambda r: str(r.preemptions),
        "goodput": lambda r: f"{r.goodput:.0%}",
    }
    console = Console(highlight=False)
    console.print(description)
    console.print("p50 and p95 of TTFT and of milliseconds per token; what held KV slots contain")
    for columns in (speed, memory):
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for index, name in enumerate(columns):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for report in comparison.reports:
            table.add_row(*(cell(report) for cell in columns.values()))
        console.print()
        console.print(table)
