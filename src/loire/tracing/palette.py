"""Colours of requests, in terminals and on pages. Neighbours in number are far apart in hue."""

NUM_COLORS = 12

TERMINAL_COLORS = (33, 208, 35, 170, 220, 44, 203, 106, 141, 37, 179, 211)
"""Of the 256 colours that terminals have: each is legible on black and on white."""

LIGHT_COLORS = (
    "#7fb2f0", "#f7b267", "#86cf8f", "#dc9be0", "#e6cf5c", "#6fd0cf",
    "#f39a92", "#b4cc66", "#b3a5ee", "#79bfa6", "#d3b283", "#f2a7c9",
)  # fmt: skip
"""Backgrounds for dark text."""

DARK_COLORS = (
    "#2f69ad", "#a8621a", "#2f7d3c", "#8f479a", "#847012", "#1f7f80",
    "#a9443d", "#647d1c", "#6555b4", "#2a7159", "#80623a", "#a2496f",
)  # fmt: skip
"""Backgrounds for light text, of the same hues."""


def color_index(request_number: int) -> int:
    """Which of the colours a request has."""
    return request_number % NUM_COLORS
