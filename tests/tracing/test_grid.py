"""The grid in the terminal."""

import re
from itertools import pairwise

import pytest
from random_traces import random_trace

from loire.base.config import Policy
from loire.tracing.grid import format_seconds, render_grid
from loire.workloads.seven_requests import run_seven_requests

STATIC = """\
step      1    2    3    4    5    6    7    8    9    10
slot 1    S_1* S_1  S_1  END  ---  ---  S_5* S_5  S_5  END
slot 2    S_2* S_2  S_2  S_2  S_2  END  S_6* S_6  END  ---
slot 3    S_3* END  ---  ---  ---  ---  S_7* END  ---  ---
slot 4    S_4* S_4  S_4  S_4  END  ---  .    .    .    .
waiting   3    3    3    3    3    3    0    0    0    0
"""
CONTINUOUS = """\
step      1    2    3    4    5    6    7
slot 1    S_1* S_1  S_1  END  S_6* S_6  END
slot 2    S_2* S_2  S_2  S_2  S_2  END  .
slot 3    S_3* END  S_5* S_5  S_5  END  .
slot 4    S_4* S_4  S_4  S_4  END  S_7* END
waiting   3    3    2    2    1    0    0
"""


def grid(policy: Policy, width: int = 100) -> list[str]:
    records = run_seven_requests(policy)
    return render_grid(records, width=width, color=False, unicode=False)


def test_static_shows_idle_cells() -> None:
    assert grid("static")[:6] == STATIC.splitlines()
    assert "65% computing, 25% idle, 10% empty" in grid("static")[-1]


@pytest.mark.parametrize("policy", ["orca", "paged"])
def test_continuous_fills_the_freed_cells(policy: Policy) -> None:
    assert grid(policy)[:6] == CONTINUOUS.splitlines()


def test_what_does_not_fit_is_wrapped() -> None:
    lines = grid("static", width=50)
    assert lines[0] == "step      1    2    3    4    5    6    7    8"
    assert lines[7:9] == ["step      9    10", "slot 1    S_5  END"]


@pytest.mark.parametrize("width", [10, 64, 80, 133])
@pytest.mark.parametrize("policy", ["static", "paged"])
def test_long_traces_are_compressed_and_no_line_is_too_wide(policy: Policy, width: int) -> None:
    records = random_trace(1, policy)
    lines = render_grid(records, width=width, color=False, unicode=True)
    assert max(map(len, lines)) <= max(width, 40)
    ends = sum(line.count("END") for line in lines) - 1  # one is in the legend
    assert ends == sum(slot.ended for record in records for slot in record.slots)
    # Numbers of columns without a number stand for one step.
    times = [line for before, line in pairwise(lines) if "step " in before]
    columns = sum(len(line.split()) - 1 for line in lines if line.startswith("step "))
    repeated = [int(n) for line in times for n in re.findall(r"x(\d+)", line)]
    assert repeated
    assert columns - len(repeated) + sum(repeated) == len(records)


def test_preemptions_are_counted_below_their_step() -> None:
    records = random_trace(0)
    lines = render_grid(records, width=120, color=False, unicode=True)
    counted = sum(int(n) for x in lines if x.startswith("preempted") for n in x.split()[1:])
    assert counted == sum(record.num_preemptions for record in records) > 0


def test_colours_change_nothing_but_colours() -> None:
    records = random_trace(2, "static")
    plain = render_grid(records, width=90, color=False, unicode=True)
    colored = render_grid(records, width=90, color=True, unicode=True)
    assert any("\x1b[" in line for line in colored)
    assert [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in colored] == plain


def test_nothing_recorded() -> None:
    assert render_grid([], width=80, color=False, unicode=True) == ["no steps were recorded"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3e-7, "0.3 µs"),
        (0.00042, "420 µs"),
        (0.0123, "12.3 ms"),
        (61.5, "61.5 s"),
        (5400, "5,400 s"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
