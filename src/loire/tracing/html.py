"""Timelines on one self-contained page: no script, no font, nothing to fetch."""

from collections.abc import Sequence
from html import escape

from loire.base.step import StepRecord
from loire.tracing.grid import summary
from loire.tracing.svg import legend_entries, timeline_chart
from loire.tracing.svg_marks import DEFINITIONS, MARGIN_LEFT, MARGIN_RIGHT, STYLE
from loire.tracing.timeline import build_timeline

_PAGE_STYLE = (
    "*{box-sizing:border-box}body{margin:0 auto;max-width:1400px;padding:16px 20px 48px;"
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;"
    "color:var(--ink);background:var(--paper)}"
    "h1{font-size:24px;line-height:1.25;margin:8px 0}h2{font-size:18px;margin:28px 0 2px}"
    "p{margin:4px 0 10px;max-width:80ch}.note{color:var(--muted);font-size:13px;max-width:none}"
    f".timeline{{padding:0 {MARGIN_RIGHT}px 0 {MARGIN_LEFT}px}}"
    ".timeline>svg{display:block;width:100%;overflow:visible}"
    ".legend{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;margin:14px 0;padding:0;"
    "font-size:12px}.legend svg{width:16px;height:12px;margin-right:6px;vertical-align:-1px}"
    "@media(max-width:759px){body{padding:12px 10px 32px}.timeline{padding-left:46px;"
    "padding-right:18px}}"
)


def timeline_section(records: Sequence[StepRecord], *, title: str, note: str = "") -> str:
    """HTML of one trace: a heading, what became of the slots in words, and the charts.

    For page(), whose style sheet and patterns it needs. title and note are plain text.
    """
    parts = ["<section>", f"<h2>{escape(title)}</h2>"]
    if note:
        parts.append(f"<p>{escape(note)}</p>")
    if records:
        timeline = build_timeline(records)
        chart = timeline_chart(timeline)
        parts.append(f'<p class="note">{escape("; ".join(summary(timeline)))}</p>')
        parts.append(
            f'<div class="timeline"><svg class="chart" height="{chart.height:g}" role="img" '
            f'aria-label="{escape(title)}">{chart.body}</svg></div>'
        )
    else:
        parts.append('<p class="note">no steps were recorded</p>')
    return "\n".join([*parts, "</section>"])


def legend() -> str:
    """HTML that explains the colours and signs of all timelines; once per page."""
    entries = (
        f'<li><svg class="chart">{sign}</svg>{escape(meaning)}</li>'
        for sign, meaning in legend_entries()
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def page(title: str, sections: Sequence[str], *, introduction: str = "", style: str = "") -> str:
    """A whole HTML document around sections that are HTML already.

    title and introduction are plain text. style is appended to the style sheet; it may use the
    colours --ink, --muted, --paper, --lane and --line, which follow the reader's light or dark
    preference, and further ones of loire.tracing.svg_marks.
    """
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_PAGE_STYLE}{style}</style></head><body>\n"
    )
    patterns = f'<svg width="0" height="0" style="position:absolute">{DEFINITIONS}</svg>\n'
    intro = f"<p>{escape(introduction)}</p>\n" if introduction else ""
    body = "\n".join(sections)
    return f"{head}{patterns}<h1>{escape(title)}</h1>\n{intro}{body}\n</body></html>\n"
