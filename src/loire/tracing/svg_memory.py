"""KV blocks over time as stacked areas, with preemptions and prefix hits above them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loire.base.step import StepRecord
from loire.tracing.svg_axis import round_ticks
from loire.tracing.svg_marks import Chart, number, percent, text, title
from loire.tracing.timeline import Timeline

HEADING = 20
MARKS = 16
PLOT = 150
CURVES = 46
MAX_COLUMNS = 600
"""Steps beyond that are averaged: a page has no more pixels."""
MAX_HOVERS = 160
MAX_MARKS = 64

BANDS: tuple[tuple[str, str, Callable[[StepRecord, int], float]], ...] = (
    ("live", "live tokens", lambda r, size: r.kv_live_tokens / size),
    ("fragmented", "internal fragmentation", lambda r, size: r.kv_fragmented_tokens / size),
    ("reserved", "reserved for tokens to come", lambda r, size: r.kv_reserved_tokens / size),
    ("idle", "held by ended sequences", lambda r, size: r.kv_idle_tokens / size),
    ("cached", "cached prefixes", lambda r, size: r.blocks_cached),
)
"""Class, name and blocks of each band, from the bottom up; above them is what is free."""


@dataclass(frozen=True, slots=True)
class _Column:
    """Steps first .. end - 1, drawn as one."""

    first: int
    end: int
    blocks: tuple[float, ...]
    """Mean per band."""


def memory_chart(timeline: Timeline) -> Chart:
    """What the blocks of the KV pool held, in blocks; if little was ever used, only that part."""
    pool, size = _pool(timeline.records[0]), timeline.block_size
    peak = max(record.blocks_in_use + record.blocks_cached for record in timeline.records)
    highest = pool if 4 * peak > pool else max(round(1.2 * peak), 1)
    heading = "KV blocks" if size is None else f"KV blocks of {size} tokens"
    heading += f", {pool:,} in the pool"
    heading += f", at most {peak:,} used" if highest < pool else ""
    marked = any(r.num_preemptions or r.num_prefix_hit_tokens for r in timeline.records)
    top = HEADING + (MARKS if marked else 0)
    parts = [text("0", 12, heading, "heading")]
    parts.append(f'<rect class="lane" x="0" width="100%" y="{top}" height="{PLOT}"/>')
    parts.append(_nested(top, PLOT, f"0 0 {len(timeline.records)} {highest}"))
    columns = list(_columns(timeline, MAX_COLUMNS))
    below = [0.0] * len(columns)
    for index, (css, _, _) in enumerate(BANDS):
        above = [low + column.blocks[index] for low, column in zip(below, columns, strict=True)]
        if above != below:
            parts.append(f'<path class="{css}" d="{_area(columns, below, above, highest)}"/>')
        below = above
    parts.append("</svg>")
    for tick in round_ticks(highest, 4):
        y = top + PLOT * (1 - tick / highest)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{number(y)}" y2="{number(y)}"/>')
        parts.append(text("-8", y + 4, f"{tick:,g}", "left muted"))
    parts += [_hover(timeline, c, top, pool) for c in _columns(timeline, MAX_HOVERS)]
    parts += [_marks(timeline, c, HEADING) for c in _columns(timeline, MAX_MARKS)]
    return Chart("".join(parts), top + PLOT)


def queue_chart(timeline: Timeline) -> Chart:
    """Running and waiting sequences after each step."""
    records, steps = timeline.records, len(timeline.records)
    highest = max(max(r.num_running, r.num_waiting, 1) for r in records)
    parts = [
        '<text x="0" y="12" class="heading">sequences: running and '
        '<tspan style="fill:var(--alert)">waiting</tspan></text>',
        _nested(HEADING, CURVES, f"0 0 {steps} {highest}"),
    ]
    for color, values in (
        ("ink", [r.num_running for r in records]),
        ("alert", [r.num_waiting for r in records]),
    ):
        path = _curve(values, highest)
        parts.append(f'<path class="curve" style="stroke:var(--{color})" d="{path}"/>')
    parts.append("</svg>")
    for tick in (0, highest):
        y = HEADING + CURVES * (1 - tick / highest)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{number(y)}" y2="{number(y)}"/>')
        parts.append(text("-8", y + 4, f"{tick:,}", "left muted"))
    return Chart("".join(parts), HEADING + CURVES)


def _pool(record: StepRecord) -> int:
    return max(record.blocks_free + record.blocks_cached + record.blocks_in_use, 1)


def _columns(timeline: Timeline, most: int) -> Iterator[_Column]:
    """Steps in at most `most` columns of equal width."""
    records, size = timeline.records, timeline.block_size or 1
    steps = len(records)
    count = min(steps, most)
    for index in range(count):
        first, end = index * steps // count, (index + 1) * steps // count
        blocks = tuple(
            sum(value(record, size) for record in records[first:end]) / (end - first)
            for _, _, value in BANDS
        )
        yield _Column(first, end, blocks)


def _area(columns: list[_Column], below: list[float], above: list[float], highest: int) -> str:
    """A path along the top from left to right, and back along the bottom."""
    path = [f"M0 {number(highest - above[0])}"]
    for column, value in zip(columns, above, strict=True):
        path.append(f"V{number(highest - value)}H{column.end}")
    for column, value in zip(reversed(columns), reversed(below), strict=True):
        path.append(f"V{number(highest - value)}H{column.first}")
    return _without_repeats(path) + "Z"


def _curve(values: list[int], highest: int) -> str:
    path = [f"M0 {highest - values[0]}"]
    path += [f"V{highest - value}H{step + 1}" for step, value in enumerate(values)]
    return _without_repeats(path)


def _without_repeats(path: list[str]) -> str:
    """Where the height stays, only the last of the horizontal lines matters."""
    kept: list[str] = []
    for part in path:
        if kept and kept[-1][0] == "V" and part.split("H")[0] == kept[-1].split("H")[0]:
            kept.pop()
        kept.append(part)
    return "".join(kept)


def _nested(y: float, height: float, view_box: str) -> str:
    return (
        f'<svg x="0" width="100%" y="{number(y)}" height="{number(height)}" '
        f'viewBox="{view_box}" preserveAspectRatio="none" overflow="visible">'
    )


def _hover(timeline: Timeline, column: _Column, y: float, pool: int) -> str:
    steps = len(timeline.records)
    lines = [_steps(timeline, column)]
    for (_, name, _), blocks in zip(BANDS, column.blocks, strict=True):
        if blocks:
            lines.append(f"{name}: {blocks:,.1f} blocks, {blocks / pool:.0%}")
    free = pool - sum(column.blocks)
    lines.append(f"free: {free:,.1f} blocks, {free / pool:.0%}")
    return (
        f'<rect class="hover" x="{percent(column.first, steps)}" '
        f'width="{percent(column.end - column.first, steps)}" y="{number(y)}" height="{PLOT}">'
        f"{title(chr(10).join(lines))}</rect>"
    )


def _marks(timeline: Timeline, column: _Column, y: float) -> str:
    records = timeline.records[column.first : column.end]
    preemptions = sum(record.num_preemptions for record in records)
    hits = sum(record.num_prefix_hit_tokens for record in records)
    at = percent((column.first + column.end) / 2, len(timeline.records))
    parts = []
    if preemptions:
        parts.append(("alert", "M-4 3H4L0 11Z", f"{preemptions:,} preemptions"))
    if hits:
        parts.append(
            ("hit", "M0 2L4 7L0 12L-4 7Z", f"{hits:,} prompt tokens from the prefix cache")
        )
    return "".join(
        f'<svg x="{at}" y="{number(y)}" overflow="visible"><path class="{css}" d="{shape}">'
        f"{title(f'{_steps(timeline, column)}: {what}')}</path></svg>"
        for css, shape, what in parts
    )


def _steps(timeline: Timeline, column: _Column) -> str:
    first = timeline.records[column.first].step_id + 1
    last = timeline.records[column.end - 1].step_id + 1
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
