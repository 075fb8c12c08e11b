"""A comparison as one self-contained page: bars, latencies, and the timeline of each policy."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from loire.base.step import StepRecord
from loire.tracing.html import legend, page, timeline_section
from loire.workloads.compare import Comparison
from loire.workloads.metrics import Percentiles, PolicyReport

MOST_STEPS = 1500
"""Of a timeline; further ones are said to be left out."""
_STYLE = (
    ".bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:6px 10px;"
    "align-items:center;margin:10px 0 22px}.bar{display:flex;height:18px;background:var(--lane);"
    "border-radius:3px;overflow:hidden}.bar i{display:block;height:100%}"
    ".live{background:var(--live)}.reserved{background:var(--reserved)}"
    ".idle{background:var(--idle)}.fragmented{background:var(--fragmented)}"
    ".key{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;font-size:13px}"
    ".key i{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:6px}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{white-space:nowrap;padding:3px 22px 3px 0;text-align:right;"
    "border-bottom:1px solid var(--line)}"
    "th:first-child,td:first-child{text-align:left}"
)
_MEMORY = (
    ("live", "live tokens", "kv_live_share"),
    ("reserved", "reserved for tokens to come", "kv_reserved_share"),
    ("idle", "held by ended sequences", "kv_idle_share"),
    ("fragmented", "unused rest of last blocks", "kv_fragmented_share"),
)


_Columns = Mapping[str, Callable[[PolicyReport], str]]


def comparison_page(comparison: Comparison, description: str) -> str:
    """The whole document. description: one line on model, machine and load, plain text."""
    reports = comparison.reports
    sections = [
        _section("Throughput", "Output tokens per second of wall time.", _throughput(reports)),
        _section(
            "KV memory",
            "What the slots of blocks in use held, averaged over the time of the steps.",
            _key() + _memory(reports),
        ),
        _section("Latency", _objective(comparison), _latency(reports)),
        _section("Work", "What does not depend on the machine.", _work(reports)),
        legend(),
        *(_timeline(report.name, comparison.records[report.name]) for report in reports),
    ]
    return page("Batching policies compared", sections, introduction=description, style=_STYLE)


def _section(title: str, note: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p class='note'>{escape(note)}</p>{body}</section>"


def _bars(rows: Iterable[tuple[str, Sequence[tuple[str, float]], str]]) -> str:
    """Rows of (label, [(class, share)], value)."""
    lines = []
    for label, parts, value in rows:
        bar = "".join(f'<i class="{css}" style="width:{share:.2%}"></i>' for css, share in parts)
        lines.append(f'<span>{escape(label)}</span><span class="bar">{bar}</span>')
        lines.append(f"<span>{escape(value)}</span>")
    return f'<div class="bars">{"".join(lines)}</div>'


def _throughput(reports: Sequence[PolicyReport]) -> str:
    most = max(report.output_tokens_per_s for report in reports)
    return _bars(
        (r.name, [("live", r.output_tokens_per_s / most)], f"{r.output_tokens_per_s:,.0f} tokens/s")
        for r in reports
    )


def _memory(reports: Sequence[PolicyReport]) -> str:
    return _bars(
        (
            report.name,
            [(css, getattr(report, field)) for css, _, field in _MEMORY],
            f"{report.kv_live_share:.0%} live",
        )
        for report in reports
    )


def _key() -> str:
    entries = "".join(f'<li><i class="{css}"></i>{name}</li>' for css, name, _ in _MEMORY)
    return f'<ul class="key">{entries}</ul>'


def _table(columns: _Columns, reports: Sequence[PolicyReport]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = (
        "<tr>" + "".join(f"<td>{escape(cell(r))}</td>" for cell in columns.values()) + "</tr>"
        for r in reports
    )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _objective(comparison: Comparison) -> str:
    objective = comparison.objective
    return (
        f"Seconds; p50 / p95 / p99. Goodput counts requests with a first token within "
        f"{objective.ttft_s:g} s and {objective.tpot_s * 1000:g} ms per token after it."
    )


def _three(values: Percentiles, unit: float = 1.0) -> str:
    return " / ".join(f"{value * unit:,.2f}" for value in (values.p50, values.p95, values.p99))


def _latency(reports: Sequence[PolicyReport]) -> str:
    columns: _Columns = {
        "policy": lambda r: r.name,
        "first token": lambda r: _three(r.ttft_s),
        "per token, ms": lambda r: _three(r.tpot_s, 1000),
        "queueing": lambda r: _three(r.queue_s),
        "goodput": lambda r: f"{r.goodput:.0%}",
        "preemptions": lambda r: str(r.preemptions),
    }
    return _table(columns, reports)


def _work(reports: Sequence[PolicyReport]) -> str:
    columns: _Columns = {
        "policy": lambda r: r.name,
        "steps": lambda r: f"{r.steps:,}",
        "mean batch": lambda r: f"{r.mean_batch:.1f}",
        "largest": lambda r: str(r.largest_batch),
        "computed tokens": lambda r: f"{r.computed_tokens:,}",
        "prefix hits": lambda r: f"{r.prefix_hit_rate:.0%}",
        "weights read, GB": lambda r: f"{r.weight_bytes_read / 1e9:,.0f}",
        "KV read, GB": lambda r: f"{r.kv_bytes_read / 1e9:,.1f}",
    }
    return _table(columns, reports)


def _timeline(name: str, records: Sequence[StepRecord]) -> str:
    left_out = max(len(records) - MOST_STEPS, 0)
    note = f"The first {MOST_STEPS:,} of {len(records):,} steps." if left_out else ""
    return timeline_section(records[:MOST_STEPS], title=name, note=note)
