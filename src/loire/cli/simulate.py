"""A fleet in simulated time: what a trace would meet there, by ways of routing."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loire.base.errors import ConfigError
from loire.base.units import parse_tokens
from loire.cli.options import argument_type
from loire.cli.progress import ProgressBars

if TYPE_CHECKING:
    from loire.fleet.arrivals import Arrival
    from loire.fleet.autoscaling import Autoscaling
    from loire.fleet.outcome import FleetOptions
    from loire.fleet.picture import Series
    from loire.fleet.step_costs import StepCosts

AGENTS = "agents"
_EPILOG = """\
The scheduler, the KV memory and the placement are the real ones; steps only take time. Traces are
Azure's CSV, Mooncake's JSON lines, or JSON lines with arrival_s, num_prompt and num_output.

  loire bench --cost costs.json
  loire simulate trace.csv --cost costs.json --replicas 4
  loire simulate mooncake.jsonl --replicas 64 --speed 16 --routing work --routing random
  loire simulate agents --sessions 200 --autoscale 1:16 --price 2.5 --html fleet.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire simulate`."""
    from loire.fleet.routing import ROUTINGS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add = parser.add_argument
    tokens = argument_type(parse_tokens)
    add("trace", metavar="TRACE", help="a file, or `agents`: made sessions of agents")
    add("--replicas", type=int, default=1, help="engines at the start [1]")
    add("--routing", action="append", choices=tuple(ROUTINGS), help="(repeatable) [work]")
    add("--cost", type=Path, metavar="FILE", help="of steps, as `loire bench --cost` writes [8B]")
    add("--fronts", type=int, default=1, help="that place requests without each other [1]")
    add("--tell-blocks", action="store_true", help="replicas tell all fronts what they have cached")
    add("--speed", type=float, default=1.0, help="of the arrivals [1]")
    add("--limit", type=int, help="take only the first requests of the trace")
    add("--sessions", type=int, default=100, help="of agents [100]")
    add("--seed", type=int, default=0, help="of chance in routing and in agents [0]")
    group = parser.add_argument_group("engine of a replica")
    group.add_argument("--kv-tokens", type=tokens, default=400_000, help="of its KV pool [400k]")
    group.add_argument("--block-size", type=int, default=128, help="tokens per KV block [128]")
    group.add_argument("--max-num-seqs", type=int, default=128, help="in a step [128]")
    group.add_argument(
        "--max-num-batched-tokens", type=tokens, default=2048, help="token budget of a step [2048]"
    )
    group = parser.add_argument_group("autoscaling")
    group.add_argument("--autoscale", metavar="MIN:MAX", help="replicas by what waits [no]")
    group.add_argument(
        "--queued-tokens", type=float, default=8000.0, help="that may wait per replica [8000]"
    )
    group.add_argument("--startup", type=float, default=60.0, help="seconds to start one [60]")
    group = parser.add_argument_group("what is told")
    group.add_argument("--ttft", type=float, default=2.0, help="objective in seconds [2]")
    group.add_argument("--tpot", type=float, default=0.05, help="objective in seconds [0.05]")
    group.add_argument("--price", type=float, help="of a replica per hour: tells costs per token")
    group.add_argument("--html", type=Path, metavar="OUT", help="write a page with curves")
    group.add_argument("--svg", type=Path, metavar="OUT", help="write the curves as an image")
    group.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    from loire.fleet.picture import Series, fleet_page, fleet_svg
    from loire.fleet.report import summarize
    from loire.fleet.simulation import check_sizes, simulate
    from loire.workloads.metrics import Objective

    arrivals, costs = _arrivals(args), _costs(args)
    fleets = [_options(args, routing) for routing in dict.fromkeys(args.routing or ["work"])]
    check_sizes(arrivals, fleets[0])
    objective = Objective(args.ttft, args.tpot)
    series: list[Series] = []
    with ProgressBars(times="remaining", quiet=args.json) as bars:
        for options in fleets:
            progress = partial(bars.update, options.routing)
            outcome = simulate(arrivals, costs, options, progress=progress)
            report = summarize(outcome, objective, price_per_hour=args.price)
            series.append(Series(outcome, report))
    description = _description(args, costs, series[0])
    _write(args.html, lambda: fleet_page(series, description))
    _write(args.svg, lambda: fleet_svg(series))
    if args.json:
        print(json.dumps(_as_json(args, costs, series)))
    else:
        _print(series, description)
    return 0


def _arrivals(args: argparse.Namespace) -> "list[Arrival]":
    from loire.fleet.arrivals import Agents, agent_arrivals, trace_arrivals
    from loire.workloads.traces import read_trace

    if args.speed <= 0:
        raise ConfigError(f"--speed {args.speed:g} is not above 0")
    if args.trace == AGENTS:
        agents = Agents(sessions=args.sessions)
        return agent_arrivals(agents, speed=args.speed, seed=args.seed)[: args.limit]
    return trace_arrivals(read_trace(Path(args.trace))[: args.limit], speed=args.speed)


def _costs(args: argparse.Namespace) -> "StepCosts":
    from loire.fleet.step_costs import ACCELERATOR, StepCosts

    return ACCELERATOR if args.cost is None else StepCosts.read(args.cost)


def _options(args: argparse.Namespace, routing: str) -> "FleetOptions":
    from loire.fleet.outcome import FleetOptions
    from loire.fleet.simulated_replica import ReplicaOptions

    replica = ReplicaOptions(
        kv_tokens=args.kv_tokens,
        block_size=args.block_size,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
    )
    return FleetOptions(
        replicas=args.replicas,
        routing=routing,
        fronts=args.fronts,
        tells_blocks=args.tell_blocks,
        replica=replica,
        autoscaling=_autoscaling(args),
        startup_s=args.startup,
        seed=args.seed,
    )


def _autoscaling(args: argparse.Namespace) -> "Autoscaling | None":
    from loire.fleet.autoscaling import Autoscaling

    if args.autoscale is None:
        return None
    low, colon, high = args.autoscale.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal()):
        raise ConfigError(f"--autoscale {args.autoscale!r} is not a range such as 1:16")
    return Autoscaling(
        min_replicas=int(low), max_replicas=int(high), target_queued_tokens=args.queued_tokens
    )


def _description(args: argparse.Namespace, costs: "StepCosts", first: "Series") -> str:
    report = first.report
    number = f"{args.replicas} replicas" if args.autoscale is None else f"{args.autoscale} replicas"
    return (
        f"{args.trace}: {report.num_requests:,} requests, {report.num_prompt_tokens:,} prompt and "
        f"{report.num_output_tokens:,} output tokens; {number} of {args.kv_tokens:,} KV tokens; "
        f"costs of steps: {costs.source or 'from a file'}; one cache for all would hit "
        f"{report.hit_bound:.3f}; objective: TTFT {args.ttft:g} s, TPOT {args.tpot:g} s"
    )


def _as_json(
    args: argparse.Namespace, costs: "StepCosts", series: "list[Series]"
) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "trace": args.trace,
        "costs": asdict(costs),
        "fleet": asdict(series[0].outcome.options) | {"routing": None},
        "objective": {"ttft_s": args.ttft, "tpot_s": args.tpot},
        "results": [
            s.report.as_dict() | {"over_time": [asdict(sample) for sample in s.outcome.samples]}
            for s in series
        ],
    }


def _print(series: "list[Series]", description: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from loire.fleet.picture import COLUMNS

    print(description)
    print("TTFT at p50, p95 and p99, TPOT at p50 and p99\n")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    columns = [c for c in COLUMNS if any(c[1](s.report) for s in series)]
    for index, (name, _) in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for s in series:
        table.add_row(*(cell(s.report) for _, cell in columns))
    console.print(table)


def _write(path: Path | None, content: Any) -> None:
    if path is None:
        return
    text = content()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    print(f"wrote {path} ({len(text.encode()):,} bytes)", file=sys.stderr)
