"""The batch as a grid in the terminal: rows are slots, columns are steps.

    slot 1   S_1* S_1  S_1  END  S_6* S_6  END
    slot 3   S_3* END  S_5* S_5  S_5  END

As talks on continuous batching draw it (after Anyscale, "How continuous batching enables 23x
throughput in LLM inference", 2023).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap

from loire.base.step import StepRecord
from loire.tracing.palette import TERMINAL_COLORS, color_index
from loire.tracing.timeline import Run, Timeline, build_timeline

MIN_WIDTH = 40
MARGIN = 10
"""Characters for the headings of lines."""


@dataclass(frozen=True, slots=True)
class _Signs:
    idle: str
    paused: str
    empty: str


_UNICODE = _Signs(idle="░░░", paused="~", empty="·")
_ASCII = _Signs(idle="---", paused="~", empty=".")


@dataclass(frozen=True, slots=True)
class _Column:
    """Steps first .. end - 1, in all of which every slot does the same."""

    first: int
    end: int

    @property
    def num_steps(self) -> int:
        return self.end - self.first


def render_grid(
    records: Sequence[StepRecord], *, width: int, color: bool, unicode: bool
) -> list[str]:
    """The lines of the picture, none wider than width characters (at least MIN_WIDTH).

    If the steps do not fit into one line, equal ones are drawn once, with their number below
    the step's, and the rest is wrapped.
    """
    if not records:
        return ["no steps were recorded"]
    timeline = build_timeline(records)
    width = max(width, MIN_WIDTH)
    grid = _Grid(timeline, color=color, signs=_UNICODE if unicode else _ASCII)
    notes = [grid.legend(), *summary(timeline)]
    return [*grid.lines(width), "", *(line for note in notes for line in wrap(note, width))]


def summary(timeline: Timeline) -> list[str]:
    """What became of the slots and of the KV memory, in words."""
    steps = len(timeline.records)
    cells = dict.fromkeys(("prefill", "decode", "idle", "paused"), 0)
    for run in timeline.runs:
        cells[run.kind] += run.num_steps
    total = steps * timeline.num_slots
    busy = cells["prefill"] + cells["decode"]
    empty = total - sum(cells.values())
    tokens = sum(run.num_prefill_tokens + run.num_decode_tokens for run in timeline.runs)
    shares = [f"{busy / max(total, 1):.0%} computing"]
    shares += [
        f"{count / total:.0%} {name}"
        for name, count in (("idle", cells["idle"]), ("paused", cells["paused"]), ("empty", empty))
        if count
    ]
    lines = [
        f"{steps:,} steps in {format_seconds(timeline.elapsed_s(steps))}, {tokens:,} tokens "
        f"computed, {timeline.num_slots} slots: {', '.join(shares)}"
    ]
    preemptions = sum(record.num_preemptions for record in timeline.records)
    hits = sum(record.num_prefix_hit_tokens for record in timeline.records)
    if preemptions:
        lines.append(f"{preemptions:,} preemptions")
    if hits:
        lines.append(f"{hits:,} prompt tokens found in the prefix cache")
    return lines


def format_seconds(seconds: float) -> str:
    """A duration with three digits and its unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 else f"{seconds:,.0f} s"
    return "0 s" if seconds == 0 else f"{seconds / 1e-6:.2g} µs"


class _Grid:
    def __init__(self, timeline: Timeline, *, color: bool, signs: _Signs) -> None:
        self._timeline = timeline
        self._color = color
        self._signs = signs
        self._rows: list[list[Run]] = [[] for _ in range(timeline.num_slots)]
        for run in timeline.runs:
            self._rows[run.slot].append(run)
        self._starts = [[run.first for run in row] for row in self._rows]
        self._waiting = any(record.num_waiting for record in timeline.records)
        self._preempted = any(record.num_preemptions for record in timeline.records)

    def lines(self, width: int) -> list[str]:
        records = self._timeline.records
        columns = [_Column(step, step + 1) for step in range(len(records))]
        cell = self._cell_width(columns)
        if MARGIN + cell * len(columns) > width:
            columns = self._merged_columns()
            cell = self._cell_width(columns)
        per_line = max((width - MARGIN) // cell, 1)
        lines: list[str] = []
        for first in range(0, len(columns), per_line):
            lines += [""] if lines else []
            lines += self._band(columns[first : first + per_line], cell)
        return lines

    def legend(self) -> str:
        kinds = {run.kind for run in self._timeline.runs}
        signs = self._signs
        parts = ["S_1* prefill", "S_1 decode", "END last token"]
        parts += [f"{signs.idle} ended, slot still held"] if "idle" in kinds else []
        parts += [f"{signs.paused} runs, but not in this step"] if "paused" in kinds else []
        return "   ".join([*parts, f"{signs.empty} empty"])

    def _merged_columns(self) -> list[_Column]:
        edges = {0, len(self._timeline.records)}
        for run in self._timeline.runs:
            edges |= {run.first, run.end}
            if run.ended:
                edges.add(run.end - 1)
        ordered = sorted(edges)
        return [_Column(first, end) for first, end in pairwise(ordered)]

    def _cell_width(self, columns: Sequence[_Column]) -> int:
        """Characters of a column, the space behind it included."""
        texts = [self._step_number(column.first) for column in columns]
        texts += [self._times(column) for column in columns]
        # Whether a sequence has a star depends on the column; leave room for it everywhere.
        texts += [f"{run.label}*" for run in self._timeline.runs]
        return max(map(len, [*texts, "END", self._signs.idle])) + 1

    def _band(self, columns: Sequence[_Column], cell: int) -> list[str]:
        steps = [self._step_number(column.first) for column in columns]
        covered = [self._timeline.records[column.first : column.end] for column in columns]
        lines = [self._line("step", steps, cell)]
        if any(column.num_steps > 1 for column in columns):
            lines.append(self._line("", [self._times(column) for column in columns], cell))
        for slot in range(self._timeline.num_slots):
            cells = [self._cell(slot, column, cell) for column in columns]
            lines.append((self._heading(f"slot {slot + 1}") + "".join(cells)).rstrip())
        if self._waiting:
            lines.append(self._line("waiting", [str(c[-1].num_waiting) for c in covered], cell))
        if self._preempted:
            counts = [sum(record.num_preemptions for record in c) for c in covered]
            lines.append(self._line("preempted", [str(n or "") for n in counts], cell))
        return lines

    def _cell(self, slot: int, column: _Column, width: int) -> str:
        run = self._run_at(slot, column.first)
        if run is None:
            return self._painted(self._signs.empty, "2", width)
        if run.kind == "idle":
            return self._painted(self._signs.idle, "2", width)
        if run.kind == "paused":
            return self._painted(self._signs.paused, "2", width)
        color = TERMINAL_COLORS[color_index(run.request_number)]
        if run.ended and column.end == run.end:
            return self._painted("END", f"1;4;38;5;{color}", width)
        if run.kind == "prefill":
            return self._painted(f"{run.label}*", f"30;48;5;{color}", width)
        return self._painted(run.label, f"38;5;{color}", width)

    def _run_at(self, slot: int, step: int) -> Run | None:
        index = bisect_right(self._starts[slot], step) - 1
        run = self._rows[slot][index] if index >= 0 else None
        return run if run is not None and step < run.end else None

    def _painted(self, text: str, style: str, width: int) -> str:
        padding = " " * (width - len(text))
        return f"\x1b[{style}m{text}\x1b[0m{padding}" if self._color else text + padding

    def _line(self, heading: str, texts: Sequence[str], cell: int) -> str:
        return (self._heading(heading) + "".join(f"{text:<{cell}}" for text in texts)).rstrip()

    def _heading(self, text: str) -> str:
        return f"{text:<{MARGIN}}"

    def _step_number(self, index: int) -> str:
        return str(self._timeline.records[index].step_id + 1)

    def _times(self, column: _Column) -> str:
        return f"x{column.num_steps}" if column.num_steps > 1 else ""
