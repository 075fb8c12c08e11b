"""The batch and its memory as one SVG: slots, queue and KV blocks over a common time axis."""

from collections.abc import Sequence

from loire.tracing.storage import Trace
from loire.tracing.svg_axis import time_axis
from loire.tracing.svg_marks import (
    DEFINITIONS,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    STYLE,
    Chart,
    number,
    text,
)
from loire.tracing.svg_memory import BANDS, memory_chart, queue_chart
from loire.tracing.svg_slots import slots_chart
from loire.tracing.timeline import Timeline, build_timeline

WIDTH = 1200
GAP = 14


def timeline_chart(timeline: Timeline) -> Chart:
    """All charts of a trace, one below the other. The trace must have steps."""
    charts = [slots_chart(timeline)]
    if any(record.num_waiting for record in timeline.records):
        charts.append(queue_chart(timeline))
    charts.append(memory_chart(timeline))
    parts, y = [], 0.0
    for chart in charts:
        parts.append(f'<g transform="translate(0 {number(y)})">{chart.body}</g>')
        y += chart.height + GAP
    axis = time_axis(timeline, y - GAP)
    parts.insert(0, f'<g transform="translate(0 {number(y - GAP)})">{axis.body}</g>')
    return Chart("".join(parts), y - GAP + axis.height)


def render_svg(traces: Sequence[Trace]) -> str:
    """A file of its own, WIDTH pixels wide: the traces one below the other, with the legend."""
    parts, y = [], 12.0
    for trace in traces:
        parts.append(text("12", y + 14, trace.name, "heading"))
        y += 28
        if not trace.records:
            parts.append(text("12", y + 14, "no steps were recorded", "muted"))
            y += 28
            continue
        chart = timeline_chart(build_timeline(trace.records))
        parts.append(
            f'<svg x="{MARGIN_LEFT}" y="{number(y)}" width="{WIDTH - MARGIN_LEFT - MARGIN_RIGHT}" '
            f'height="{number(chart.height)}" overflow="visible">{chart.body}</svg>'
        )
        y += chart.height + 2 * GAP
    parts.append(_legend(y))
    height = number(y + 24)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}"><style>{STYLE}</style>{DEFINITIONS}'
        f'<rect width="100%" height="100%" style="fill:var(--paper)"/>{"".join(parts)}</svg>\n'
    )


def legend_entries() -> list[tuple[str, str]]:
    """SVG of a sign, 16 by 12 pixels, and what it means."""
    box = 'width="16" height="12"'
    return [
        (f'<rect class="c0" {box}/><rect class="hatch" {box}/>', "prefill"),
        (f'<rect class="c0" {box}/>', "decode"),
        ('<path class="ended" stroke-width="2.5" d="M14.5 0V12"/>', "END"),
        (f'<rect class="held" {box}/>', "slot of an ended sequence"),
        *((f'<rect class="{css}" {box}/>', name) for css, name, _ in BANDS),
        (f'<rect class="lane" {box}/>', "free"),
        ('<path class="alert" d="M3 2H13L8 11Z"/>', "preemption"),
        ('<path class="hit" d="M8 0L13 6L8 12L3 6Z"/>', "prefix hit"),
    ]


def _legend(y: float) -> str:
    parts, x = [], float(MARGIN_LEFT)
    for sign, meaning in legend_entries():
        parts.append(f'<g transform="translate({number(x)} {number(y)})">{sign}</g>')
        parts.append(text(number(x + 21), y + 10, meaning))
        x += 36 + 6.2 * len(meaning)
    return "".join(parts)
