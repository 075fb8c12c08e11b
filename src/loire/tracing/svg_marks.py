"""The bits of SVG that all charts share: numbers, text, colours, hatches.

Charts stretch with the page: positions along the time axis are percentages, so text and line
widths keep their size at any width. Left labels hang into a margin that whoever embeds a chart
leaves free (MARGIN_LEFT, MARGIN_RIGHT, in pixels).
"""

from dataclasses import dataclass
from html import escape

from loire.tracing.palette import DARK_COLORS, LIGHT_COLORS

MARGIN_LEFT = 64
MARGIN_RIGHT = 26
NARROW_PLOT = 290
"""Least width of a plot in pixels that labels without the class `wide` reckon with."""
WIDE_PLOT = 640
"""The same for labels of that class, which narrow pages hide."""
CHARACTER_WIDTH = 6.6
"""Of a label, in pixels."""


@dataclass(frozen=True, slots=True)
class Chart:
    """SVG elements of a chart whose top left corner is (0, 0), and its height in pixels."""

    body: str
    height: float


def number(value: float) -> str:
    """A coordinate, as short as four decimals allow."""
    return f"{value:.4f}".rstrip("0").rstrip(".") or "0"


def percent(part: float, whole: float) -> str:
    """A position along the time axis."""
    return number(100 * part / whole) + "%"


def text(x: str, y: float, content: str, css: str = "") -> str:
    """One line of text; x is a number or a percentage."""
    return f'<text x="{x}" y="{number(y)}" class="{css}">{escape(content)}</text>'


def title(content: str) -> str:
    """What a browser shows when the pointer rests on the element around it."""
    return f"<title>{escape(content)}</title>"


def room_class(share: float, content: str) -> str | None:
    """Where a label of that text fits into a share of the plot's width: everywhere (""), on wide
    pages ("wide") or nowhere (None)."""
    needed = len(content) * CHARACTER_WIDTH + 4
    if share * NARROW_PLOT >= needed:
        return ""
    return "wide" if share * WIDE_PLOT >= needed else None


def _variables(colors: tuple[str, ...], **more: str) -> str:
    named = {f"c{index}": color for index, color in enumerate(colors)} | more
    return "".join(f"--{name}:{value};" for name, value in named.items())


_LIGHT = _variables(
    LIGHT_COLORS, ink="#1c2330", muted="#5b6575", paper="#ffffff", lane="#eef1f5", line="#d5dae2",
    live="#2f7fd1", fragmented="#e8833a", reserved="#f0c94d", idle="#a7afbb", cached="#9a86d8",
    alert="#c8322b", hit="#1e8a4c",
)  # fmt: skip
_DARK = _variables(
    DARK_COLORS, ink="#e7ebf2", muted="#9aa5b5", paper="#14181f", lane="#222832", line="#39414e",
    live="#4f9be8", fragmented="#e08a48", reserved="#c9a538", idle="#6d7685", cached="#8a76c9",
    alert="#ff7a70", hit="#55c986",
)  # fmt: skip

STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    ".chart text{font:11px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--ink)}"
    ".chart .muted{fill:var(--muted)}.chart .heading{font-weight:600;font-size:12px;"
    "paint-order:stroke;stroke:var(--paper);stroke-width:5px}"
    ".chart .left{text-anchor:end}.chart .middle{text-anchor:middle;pointer-events:none}"
    ".chart .end{font-weight:700}.chart .grid{stroke:var(--line);stroke-width:1}"
    ".chart .lane{fill:var(--lane)}.chart .hatch{fill:url(#hatch);pointer-events:none}"
    ".chart .ended{stroke:var(--ink)}.chart .last{fill:var(--ink);opacity:.18;"
    "pointer-events:none}.chart .paused{fill:none;stroke:var(--muted);stroke-dasharray:3 3}"
    ".chart .held{fill:url(#dots)}.chart .hover{fill:var(--ink);opacity:0}"
    ".chart .hover:hover{opacity:.1}.chart .alert{fill:var(--alert)}.chart .hit{fill:var(--hit)}"
    ".chart .curve{fill:none;stroke-width:1.5;vector-effect:non-scaling-stroke}"
    + "".join(f".chart .c{i}{{fill:var(--c{i})}}" for i in range(len(LIGHT_COLORS)))
    + "".join(
        f".chart .{name}{{fill:var(--{name})}}"
        for name in ("live", "fragmented", "reserved", "idle", "cached")
    )
    + "@media(max-width:759px){.chart .wide{display:none}}"
)
"""Style sheet of all charts, with the colours as variables that pages may use, too."""

DEFINITIONS = (
    '<defs><pattern id="hatch" patternUnits="userSpaceOnUse" width="6" height="6" '
    'patternTransform="rotate(45)"><rect width="1.6" height="6" '
    'style="fill:var(--ink);opacity:.3"/></pattern>'
    '<pattern id="dots" patternUnits="userSpaceOnUse" width="6" height="6">'
    '<rect width="6" height="6" style="fill:var(--lane)"/>'
    '<circle cx="3" cy="3" r="1.3" style="fill:var(--muted)"/></pattern></defs>'
)
"""Patterns that charts refer to; once per page."""
