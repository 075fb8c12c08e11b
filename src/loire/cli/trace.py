"""Draw the batch: a saved trace, or the seven requests of the talks, slot by slot, step by step."""

import argparse
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loire.base.errors import ConfigError

if TYPE_CHECKING:
    from loire.base.config import Policy
    from loire.tracing.storage import Trace

_EXAMPLE: "dict[str, tuple[str, Policy]]" = {
    "sequential": ("sequential: one request at a time", "sequential"),
    "static": ("static batching", "static"),
    "continuous": ("continuous batching", "paged"),
    "orca": ("orca: continuous batching, reserved memory", "orca"),
    "paged": ("paged: continuous batching, paged memory", "paged"),
}
"""--policy -> heading and preset. `continuous` is what the talks call the second picture."""
_HONESTY = "Only the scheduler ran: no tokens were computed, so the times are its own."
_EPILOG = """\
Without FILE, seven requests share four slots, once with static and once with continuous batching.
Only the scheduler runs for this: no tokens are computed.

  loire trace
  loire trace --policy orca --html orca.html
  loire trace saved.jsonl --steps 100:160
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire trace`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("file", nargs="?", type=Path, metavar="FILE", help="a saved trace [the example]")
    add("--example", action="store_true", help="the seven requests of the talks, on the scheduler")
    add(
        "--policy",
        action="append",
        choices=tuple(_EXAMPLE),
        help="of the example (repeatable) [static and continuous]",
    )
    add("--steps", type=_range, metavar="A:B", help="draw only the steps from A to B")
    add("--html", type=Path, metavar="OUT", help="write a page with the batch and the KV memory")
    add("--svg", type=Path, metavar="OUT", help="the same as an image")
    add("--perfetto", type=Path, metavar="OUT", help="write a file for ui.perfetto.dev")
    add("--json", action="store_true", help="the traces as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    traces = [_cut(trace, args.steps) for trace in _traces(args)]
    written = _write_files(args, traces)
    if args.json:
        import json
        from dataclasses import asdict

        print(json.dumps({"traces": [asdict(trace) for trace in traces]}))
    elif not written:
        _print_grids(traces, example=args.file is None)
    return 0


def _write_files(args: argparse.Namespace, traces: "list[Trace]") -> bool:
    """Write the pictures that were asked for; whether there were any."""
    pictures: list[tuple[Path, str]] = []
    if args.html is not None:
        pictures.append((args.html, _page(traces, example=args.file is None)))
    if args.svg is not None:
        from loire.tracing.svg import render_svg

        pictures.append((args.svg, render_svg(traces)))
    if args.perfetto is not None:
        from loire.tracing.perfetto import render_perfetto

        pictures.append((args.perfetto, render_perfetto(traces)))
    for path, content in pictures:
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
        print(f"wrote {path} ({len(content.encode()):,} bytes)", file=sys.stderr)
    return bool(pictures)


def _page(traces: "list[Trace]", *, example: bool) -> str:
    from loire.tracing.html import legend, page, timeline_section

    sections = [timeline_section(trace.records, title=trace.name) for trace in traces]
    introduction = f"Seven requests share four slots. {_HONESTY}" if example else ""
    return page("The batch, step by step", [legend(), *sections], introduction=introduction)


def _traces(args: argparse.Namespace) -> "list[Trace]":
    from loire.tracing.storage import Trace, read_traces

    if args.file is not None:
        if args.example or args.policy:
            raise ConfigError(f"--example and --policy draw no file: leave {args.file} out")
        return read_traces(args.file)
    from loire.workloads.seven_requests import run_seven_requests

    chosen = [_EXAMPLE[name] for name in args.policy or ("static", "continuous")]
    return [Trace(heading, tuple(run_seven_requests(policy))) for heading, policy in chosen]


def _cut(trace: "Trace", steps: "tuple[int, int] | None") -> "Trace":
    if steps is None:
        return trace
    first, last = steps
    records = tuple(r for r in trace.records if first <= r.step_id + 1 <= last)
    if not records:
        ids = [record.step_id + 1 for record in trace.records]
        has = f"steps {ids[0]} to {ids[-1]}" if ids else "no steps"
        raise ConfigError(f"--steps {first}:{last} draws nothing of {trace.name!r}: it has {has}")
    return replace(trace, records=records)


def _print_grids(traces: "list[Trace]", *, example: bool) -> None:
    from loire.tracing.grid import render_grid

    width = shutil.get_terminal_size((100, 24)).columns
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    for number, trace in enumerate(traces):
        print(end="\n" if number else "")
        print(f"\x1b[1m{trace.name}\x1b[0m" if color else trace.name)
        for line in render_grid(trace.records, width=width, color=color, unicode=unicode):
            print(line)
    if example:
        print(f"\n{_HONESTY}")


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of steps such as 100:160")
    return int(first), int(last)
