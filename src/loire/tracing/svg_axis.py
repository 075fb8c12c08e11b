"""Axes: round numbers, and the time axis in steps and in seconds."""

import math

from loire.tracing.svg_marks import Chart, percent, text
from loire.tracing.timeline import Timeline

MAX_TICKS = 12
AXIS_HEIGHT = 38
LABELS = 18
"""Height of the first line of labels below the charts, in pixels."""


def round_interval(span: float, most: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides span into at most `most` parts."""
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5):
        if factor * power * most >= span * (1 - 1e-9):
            return factor * power
    return 10 * power


def round_ticks(top: float, most: int) -> list[float]:
    """Round numbers from 0 to top, at most `most` beside 0; of whole things if top is above 1."""
    interval = round_interval(top, most)
    if top > 1:
        interval = max(interval, 1)
    return [index * interval for index in range(int(top / interval + 1e-9) + 1)]


def axis_steps(timeline: Timeline) -> list[int]:
    """Indices of the steps that the time axis names: those with round numbers."""
    steps = len(timeline.records)
    interval = max(round_interval(steps, MAX_TICKS), 1)
    first = timeline.records[0].step_id
    named = [i for i in range(steps) if (first + i + 1) % interval == 0]
    return named if interval > 1 else list(range(steps))


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which a duration is a handy number, and its seconds."""
    for unit, scale in (("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= 2 * scale:
            return unit, scale
    return "µs", 1e-6


def time_axis(timeline: Timeline, height_above: float) -> Chart:
    """Step numbers, below them when each step began; lines through all that stands above."""
    steps = len(timeline.records)
    duration_s = max(timeline.elapsed_s(steps), 1e-6)
    unit, scale = time_unit(duration_s)
    digits = max(0, 2 - math.floor(math.log10(duration_s / scale)))
    parts = [text("-8", LABELS, "step", "left muted"), text("-8", LABELS + 15, unit, "left muted")]
    for order, step in enumerate(axis_steps(timeline)):
        css = "middle wide" if order % 2 else "middle"
        at = percent(step + 0.5, steps)
        label = f"{timeline.records[step].step_id + 1:,}"
        parts.append(text(at, LABELS, label, css))
        parts.append(text(at, LABELS + 15, f"{timeline.elapsed_s(step) / scale:,.{digits}f}", css))
        parts.append(
            f'<line x1="{at}" x2="{at}" y1="{-height_above:g}" y2="2" class="grid {css}"/>'
        )
    return Chart("".join(parts), AXIS_HEIGHT)
