"""Simulated fleets as curves over time: one page, or one SVG, without scripts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from loire.fleet.outcome import Outcome, Sample
from loire.fleet.report import FleetReport
from loire.tracing.html import page
from loire.tracing.palette import color_index
from loire.tracing.svg_axis import round_ticks, time_unit
from loire.tracing.svg_marks import (
    MARGIN_LEFT,
    MARGIN_RIGHT,
    STYLE,
    Chart,
    number,
    percent,
    text,
    title,
)

WIDTH = 1000
PLOT = 110
"""Height of a plot, in pixels."""
GAP = 34
TICKS = 4
_CURVES = "".join(f".chart .s{i}{{stroke:var(--c{i})}}" for i in range(12))
_TABLE = (
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:12px 0}"
    "th,td{white-space:nowrap;padding:3px 18px 3px 0;text-align:right;"
    "border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}"
    ".wide{overflow-x:auto}.curves{padding:0 26px 0 64px}.curves>svg{display:block;width:100%;"
    "overflow:visible}"
)


@dataclass(frozen=True, slots=True)
class Series:
    """One fleet of the picture."""

    outcome: Outcome
    report: FleetReport


_PLOTS: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("replicas", lambda sample: sample.num_replicas),
    ("unfinished requests", lambda sample: sample.num_requests),
    ("prompt tokens that wait", lambda sample: sample.queued_tokens),
)

COLUMNS: tuple[tuple[str, Callable[[FleetReport], str]], ...] = (
    ("routing", lambda r: r.routing),
    ("hits", lambda r: f"{r.hit_rate:.3f}"),
    ("TTFT s", lambda r: f"{r.ttft_s.p50:.2f} {r.ttft_s.p95:.2f} {r.ttft_s.p99:.2f}"),
    ("TPOT ms", lambda r: f"{r.tpot_s.p50 * 1000:.1f} {r.tpot_s.p99 * 1000:.1f}"),
    ("goodput", lambda r: f"{r.goodput:.1%}"),
    ("busy", lambda r: f"{r.busy_share:.0%}"),
    ("replicas", lambda r: f"{r.mean_replicas:.1f}"),
    ("cost/M", lambda r: _cost(r.cost_per_million_tokens)),
    ("of output", lambda r: _cost(r.cost_per_million_output_tokens)),
)
"""Heading and cell of a table with one line per fleet: TTFT at p50, p95 and p99, TPOT at p50 and
p99."""


def fleet_page(series: Sequence[Series], description: str) -> str:
    """The whole document. description: what was simulated, plain text."""
    chart = _charts(series)
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in COLUMNS)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell(s.report))}</td>' for _, cell in COLUMNS)}</tr>"
        for s in series
    )
    sections = [
        f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>',
        f'<div class="curves"><svg class="chart" height="{number(chart.height)}" role="img" '
        f'aria-label="The fleet over time">{chart.body}</svg></div>',
    ]
    return page("A simulated fleet", sections, introduction=description, style=_CURVES + _TABLE)


def fleet_svg(series: Sequence[Series]) -> str:
    """The curves as a file of their own, WIDTH pixels wide."""
    chart = _charts(series)
    height = number(chart.height + 24)
    inner = number(WIDTH - MARGIN_LEFT - MARGIN_RIGHT)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}"><style>{STYLE}{_CURVES}</style>'
        f'<rect width="100%" height="100%" style="fill:var(--paper)"/>'
        f'<svg x="{MARGIN_LEFT}" y="12" width="{inner}" height="{number(chart.height)}" '
        f'overflow="visible">{chart.body}</svg></svg>\n'
    )


def _cost(value: float | None) -> str:
    return "" if value is None else f"{value:,.3f}"


def _charts(series: Sequence[Series]) -> Chart:
    end_s = max(s.outcome.samples[-1].time_s for s in series) or 1.0
    parts, y = [_legend(series)], 26.0
    for name, value in _PLOTS:
        top = max((value(sample) for s in series for sample in s.outcome.samples), default=0) or 1
        parts.append(f'<g transform="translate(0 {number(y)})">')
        parts.append(text("0", -6, name, "heading"))
        for tick in round_ticks(top, TICKS):
            height = PLOT * (1 - tick / top)
            line = number(height)
            parts.append(f'<line x1="0" x2="100%" y1="{line}" y2="{line}" class="grid"/>')
            parts.append(text("-8", height + 4, f"{tick:,.0f}", "left muted"))
        for index, s in enumerate(series):
            points = [(sample.time_s, value(sample)) for sample in s.outcome.samples]
            parts.append(_curve(points, end_s, top, index, s.report.routing))
        parts.append("</g>")
        y += PLOT + GAP
    parts.append(_time_axis(end_s, y - GAP))
    return Chart("".join(parts), y)


def _curve(
    points: Sequence[tuple[float, float]], end_s: float, top: float, index: int, name: str
) -> str:
    """A line of its own coordinates, which stretches with the page."""
    path = " ".join(
        f"{number(1000 * time_s / end_s)},{number(PLOT * (1 - value / top))}"
        for time_s, value in points
    )
    return (
        f'<svg width="100%" height="{PLOT}" viewBox="0 0 1000 {PLOT}" preserveAspectRatio="none" '
        f'overflow="visible"><polyline class="curve s{color_index(index)}" points="{path}">'
        f"{title(name)}</polyline></svg>"
    )


def _legend(series: Sequence[Series]) -> str:
    parts, x = [], 0.0
    for index, s in enumerate(series):
        css = f"c{color_index(index)}"
        parts.append(f'<rect class="{css}" x="{number(x)}" y="-8" width="14" height="10"/>')
        parts.append(text(number(x + 19), 1, s.report.routing))
        x += 40 + 6.6 * len(s.report.routing)
    return "".join(parts)


def _time_axis(end_s: float, y: float) -> str:
    unit, scale = time_unit(end_s)
    span = end_s / scale
    labels = "".join(
        text(percent(tick, span), 16, f"{tick:g}", "middle muted") for tick in round_ticks(span, 8)
    )
    return (
        f'<g transform="translate(0 {number(y)})">{text("-8", 16, unit, "left muted")}{labels}</g>'
    )
