"""SVG, HTML and Perfetto say what the records say, and are well-formed."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from random_traces import random_trace

from loire.base.config import Policy
from loire.base.step import StepRecord
from loire.tracing.html import legend, page, timeline_section
from loire.tracing.perfetto import render_perfetto
from loire.tracing.storage import Trace
from loire.tracing.svg import render_svg
from loire.tracing.svg_axis import axis_steps, round_ticks, time_unit
from loire.tracing.svg_memory import BANDS
from loire.tracing.timeline import build_timeline, kv_slots_in_use
from loire.workloads.seven_requests import run_seven_requests

SVG = "{http://www.w3.org/2000/svg}"


def drawn(records: tuple[StepRecord, ...]) -> ET.Element:
    return ET.fromstring(render_svg([Trace("trace", records)]))


def classes(root: ET.Element, tag: str) -> list[str]:
    return [element.get("class", "") for element in root.iter(SVG + tag)]


def percentage(text: str | None) -> float:
    assert text is not None
    return float(text.removesuffix("%"))


@pytest.mark.parametrize("policy", ["static", "paged"])
def test_every_run_is_a_rectangle_with_a_title(policy: Policy) -> None:
    records = random_trace(0, policy)
    timeline = build_timeline(records)
    rectangles = [
        (rect, title.text or "")
        for rect in drawn(records).iter(SVG + "rect")
        if (title := rect.find(SVG + "title")) is not None and rect.get("class") != "hover"
    ]
    assert len(rectangles) == len(timeline.runs)
    for (rect, title), run in zip(rectangles, timeline.runs, strict=True):
        assert title.startswith(f"{run.label} ({run.request_id}): ")
        assert ("END" in title) == run.ended
        steps = len(records)
        assert percentage(rect.get("x")) == pytest.approx(100 * run.first / steps, abs=1e-3)
        width = percentage(rect.get("width"))
        assert width == pytest.approx(100 * run.num_steps / steps, abs=1e-3)
        expected = {"idle": "held", "paused": "paused"}.get(run.kind)
        assert rect.get("class") == (expected or f"c{run.request_number % 12}")


def test_prefill_is_hatched_and_ends_are_marked() -> None:
    records = random_trace(0)
    runs = build_timeline(records).runs
    root = drawn(records)
    # One of each is in the legend.
    assert classes(root, "rect").count("hatch") == sum(r.kind == "prefill" for r in runs) + 1
    assert classes(root, "line").count("ended") == sum(r.ended for r in runs)


def test_areas_are_what_the_blocks_held() -> None:
    """The area of every band, computed from its path, is the sum over the steps."""
    records = random_trace(1, "static")
    paths = {
        path.get("class"): path.get("d", "")
        for path in drawn(records).iter(SVG + "path")
        if path.get("d", "").endswith("Z") and path.get("class") in {band[0] for band in BANDS}
    }
    shown = [name for name, _, blocks in BANDS if any(blocks(r, 8) for r in records)]
    assert list(paths) == shown
    assert "idle" in shown
    for name, _, blocks in BANDS:
        if name in paths:
            assert area(paths[name]) == pytest.approx(sum(blocks(r, 8) for r in records), rel=1e-3)


def test_a_pool_that_is_hardly_used_is_drawn_enlarged() -> None:
    root = drawn(random_trace(1, "static", num_blocks=4000))
    headings = [e.text or "" for e in root.iter(SVG + "text") if "KV blocks" in (e.text or "")]
    found = re.fullmatch(
        r"KV blocks of 8 tokens, 4,000 in the pool, at most (\d+) used", headings[0]
    )
    assert found is not None
    [box] = [e.get("viewBox", "") for e in root.iter(SVG + "svg") if e.find(f"{SVG}path[@d]")
             is not None and e.find(f"{SVG}path").get("class") == "live"]  # fmt: skip
    assert int(box.split()[3]) == round(1.2 * int(found[1]))


def area(path: str) -> float:
    """Shoelace formula for a path of M, V and H."""
    first, *rest = re.findall(r"[MVH][^MVHZ]+", path)
    x, y = map(float, first[1:].split())
    points = [(x, y)]
    for command in rest:
        x, y = (x, float(command[1:])) if command[0] == "V" else (float(command[1:]), y)
        points.append((x, y))
    closed = [*points, points[0]]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(closed))) / 2


def test_marks_add_up_to_preemptions_and_hits() -> None:
    records = random_trace(0)
    titles = [title.text or "" for title in drawn(records).iter(SVG + "title")]
    preemptions = sum(int(t.split()[-2]) for t in titles if t.endswith(" preemptions"))
    hits = sum(int(t.split(": ")[1].split()[0]) for t in titles if t.endswith("prefix cache"))
    assert preemptions == sum(record.num_preemptions for record in records) > 0
    assert hits == sum(record.num_prefix_hit_tokens for record in records) > 0


def test_labels_on_the_time_axis_do_not_crowd() -> None:
    for count in (1, 2, 10, 13, 99, 500, 4096):
        record = run_seven_requests("paged")[0]
        records = [replace(record, step_id=i, time_s=5.0 + i) for i in range(count)]
        named = axis_steps(build_timeline(records))
        assert 1 <= len(named) <= 12
        assert len({b - a for a, b in pairwise(named)}) <= 1
        assert drawn(tuple(records)) is not None


def test_round_numbers() -> None:
    assert round_ticks(16, 4) == [0, 5, 10, 15]
    assert round_ticks(1, 4) == [0, 0.5, 1]
    assert round_ticks(3, 4) == [0, 1, 2, 3]
    assert round_ticks(2500, 4) == [0, 1000, 2000]
    assert [time_unit(s)[0] for s in (1e-5, 0.5, 30, 500)] == ["µs", "ms", "s", "min"]


def test_long_traces_stay_small() -> None:
    records = random_trace(2)
    long = []
    for record in records:
        going_on = replace(record, slots=tuple(replace(slot, ended=False) for slot in record.slots))
        long += [*[going_on] * 39, record]
    long = [replace(record, step_id=i, time_s=float(i)) for i, record in enumerate(long)]
    assert len(long) > 5000
    short_page, long_page = (timeline_section(r, title="t") for r in (records, long))
    assert len(long_page) < 2 * len(short_page)


class Checker(HTMLParser):
    """Counts tags, and collects what would be fetched or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.foreign: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe") or any(
            name in ("src", "href") or name.startswith("on") for name, _ in attrs
        ):
            self.foreign.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def test_the_page_is_well_formed_and_self_contained() -> None:
    evil = '<script>alert("1")</script>&'
    records = [
        replace(r, slots=tuple(replace(s, request_id=evil) for s in r.slots))
        for r in run_seven_requests("static")
    ]
    section = timeline_section(records, title=evil, note=evil)
    ET.fromstring(section)
    text = page(evil, [legend(), section, timeline_section([], title="nothing")])
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert checker.foreign == []
    assert checker.headings == [evil, evil, "nothing"]
    assert "prefers-color-scheme:dark" in text
    assert "no steps were recorded" in text
    assert not re.search(r"url\((?!#)|@import|https?:", text)


@pytest.mark.parametrize("policy", ["static", "paged"])
def test_perfetto_events(policy: Policy) -> None:
    records = random_trace(0, policy)
    trace = json.loads(render_perfetto([Trace("one", records), Trace("two", ())]))
    events = trace["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["one", "two"]
    slices = [event for event in events if event["ph"] == "X"]
    timeline = build_timeline(records)
    assert len(slices) == len(timeline.runs)
    assert sum(s["args"]["decode tokens"] for s in slices) == sum(
        slot.num_decode_tokens for record in records for slot in record.slots
    )
    for slot in range(1, timeline.num_slots + 1):
        own = sorted((s["ts"], s["ts"] + s["dur"]) for s in slices if s["tid"] == slot)
        assert all(end <= start + 0.01 for (_, end), (start, _) in pairwise(own))
    end = max(s["ts"] + s["dur"] for s in slices)
    assert end == pytest.approx(1e6 * timeline.elapsed_s(len(records)), abs=1)
    counters = [e for e in events if e["ph"] == "C" and e["name"] == "KV blocks"]
    assert len(counters) == len(records)
    for counter, record in zip(counters, records, strict=True):
        assert sum(counter["args"].values()) == pytest.approx(24)
        assert counter["args"]["live"] == record.kv_live_tokens / 8
        assert kv_slots_in_use(record) == 8 * record.blocks_in_use
    instants = [event for event in events if event["ph"] == "i"]
    marked = sum(bool(r.num_preemptions) + bool(r.num_prefix_hit_tokens) for r in records)
    assert len(instants) == marked
