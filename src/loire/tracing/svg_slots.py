"""The batch over time: one lane per slot, one rectangle per run."""

from loire.tracing.grid import format_seconds
from loire.tracing.palette import color_index
from loire.tracing.svg_marks import Chart, number, percent, room_class, text, title
from loire.tracing.timeline import Run, Timeline

HEADING = 20


def slots_chart(timeline: Timeline) -> Chart:
    """What every slot did: colours are requests, hatched is prefill, dotted is idle."""
    lane = _lane_height(timeline.num_slots)
    gap = 2 if lane > 8 else 1
    parts = [text("0", 12, "slots of the batch", "heading")]
    every = next(n for n in (1, 2, 4, 8, 16, 32, 64, 2**20) if n * lane >= 12)
    for slot in range(timeline.num_slots):
        y = HEADING + slot * lane
        parts.append(
            f'<rect class="lane" x="0" width="100%" y="{number(y)}" height="{number(lane - gap)}"/>'
        )
        if slot % every == 0:
            parts.append(text("-8", y + (lane - gap) / 2 + 4, str(slot + 1), "left muted"))
    parts += [
        _run(timeline, run, HEADING + run.slot * lane, lane - gap, labels=lane >= 14)
        for run in timeline.runs
    ]
    return Chart("".join(parts), HEADING + timeline.num_slots * lane)


def _lane_height(num_slots: int) -> float:
    if num_slots <= 16:
        return 22
    return 14 if num_slots <= 32 else max(3, 448 / num_slots)


def _run(timeline: Timeline, run: Run, y: float, height: float, *, labels: bool) -> str:
    steps = len(timeline.records)
    place = (
        f'x="{percent(run.first, steps)}" width="{percent(run.num_steps, steps)}" '
        f'y="{number(y)}" height="{number(height)}"'
    )
    css = {"idle": "held", "paused": "paused"}.get(run.kind, f"c{color_index(run.request_number)}")
    parts = [f'<rect class="{css}" {place}>{title(_description(timeline, run))}</rect>']
    if run.kind == "prefill":
        parts.append(f'<rect class="hatch" {place}/>')
    middle = y + height / 2 + 4
    end_label = room_class(1 / steps, "END") if run.ended and labels else None
    if run.ended:
        parts.append(_end(run, steps, y, height, stroke=2.5 if labels else 1))
        if end_label is not None:
            at = percent(run.end - 0.5, steps)
            parts.append(text(at, middle, "END", f"middle end {end_label}".strip()))
    if labels and run.kind in ("prefill", "decode"):
        parts.append(_labels(run, steps, middle, end_is_named=end_label is not None))
    return "".join(parts)


def _end(run: Run, steps: int, y: float, height: float, *, stroke: float) -> str:
    """A bar at the end of the sequence, and its last step in a darker shade."""
    right = percent(run.end, steps)
    last = percent(run.end - 1, steps)
    box = f'y="{number(y)}" height="{number(height)}"'
    return (
        f'<rect class="last" x="{last}" width="{percent(1, steps)}" {box}/>'
        f'<line class="ended" x1="{right}" x2="{right}" y1="{number(y)}" y2="{number(y + height)}" '
        f'stroke-width="{stroke}" transform="translate({number(-stroke / 2)} 0)"/>'
    )


def _labels(run: Run, steps: int, y: float, *, end_is_named: bool) -> str:
    """The sequence's name: in every step where steps are wide, else once in the run."""
    num_steps = run.num_steps - end_is_named
    per_step = room_class(1 / steps, run.label)
    if per_step is not None and steps <= 24:
        return "".join(
            text(percent(run.first + i + 0.5, steps), y, run.label, f"middle {per_step}".strip())
            for i in range(num_steps)
        )
    css = room_class(num_steps / steps, run.label)
    if css is None:
        return ""
    return text(percent(run.first + num_steps / 2, steps), y, run.label, f"middle {css}".strip())


def _description(timeline: Timeline, run: Run) -> str:
    records = timeline.records
    first, last = records[run.first].step_id + 1, records[run.end - 1].step_id + 1
    steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
    what = {
        "prefill": f"prefill, {run.num_prefill_tokens:,} tokens",
        "decode": f"decode, {run.num_decode_tokens:,} tokens",
        "idle": "ended, its batch still holds the slot",
        "paused": "running, but the token budget went to others",
    }[run.kind]
    began, ended = timeline.elapsed_s(run.first), timeline.elapsed_s(run.end)
    name = run.label if run.request_id == run.label else f"{run.label} ({run.request_id})"
    end = ", END" if run.ended else ""
    return f"{name}: {what}{end}\n{steps}, from {format_seconds(began)} to {format_seconds(ended)}"
