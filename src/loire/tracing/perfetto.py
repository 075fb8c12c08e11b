"""Traces in the trace-event format that ui.perfetto.dev and chrome://tracing open.

Traces are processes, slots are threads, runs are slices, the queue and the KV blocks counters
(Google, "Trace Event Format").
"""

import json
from collections.abc import Iterator, Sequence

from loire.tracing.storage import Trace
from loire.tracing.timeline import Run, Timeline, build_timeline

Event = dict[str, object]


def render_perfetto(traces: Sequence[Trace]) -> str:
    """The JSON of a file; every trace begins at time 0, times are in microseconds."""
    events = [
        event for number, trace in enumerate(traces, start=1) for event in _events(trace, number)
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, separators=(",", ":"))


def _events(trace: Trace, process: int) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": trace.name}}
    if not trace.records:
        return
    timeline = build_timeline(trace.records)
    for slot in range(timeline.num_slots):
        thread = {"ph": "M", "pid": process, "tid": slot + 1}
        yield {**thread, "name": "thread_name", "args": {"name": f"slot {slot + 1}"}}
        yield {**thread, "name": "thread_sort_index", "args": {"sort_index": slot + 1}}
    for run in timeline.runs:
        yield _slice(timeline, run, process)
    yield from _counters(timeline, process)


def _slice(timeline: Timeline, run: Run, process: int) -> Event:
    began, ended = timeline.elapsed_s(run.first), timeline.elapsed_s(run.end)
    return {
        "ph": "X",
        "name": f"{run.label} {run.kind}",
        "cat": run.kind,
        "pid": process,
        "tid": run.slot + 1,
        "ts": _microseconds(began),
        "dur": _microseconds(ended - began),
        "args": {
            "request": run.request_id,
            "first step": timeline.records[run.first].step_id + 1,
            "steps": run.num_steps,
            "prefill tokens": run.num_prefill_tokens,
            "decode tokens": run.num_decode_tokens,
            "END": run.ended,
        },
    }


def _counters(timeline: Timeline, process: int) -> Iterator[Event]:
    size = timeline.block_size or 1
    for step, record in enumerate(timeline.records):
        at = {"pid": process, "ts": _microseconds(timeline.elapsed_s(step + 1))}
        sequences = {"running": record.num_running, "waiting": record.num_waiting}
        yield {"ph": "C", "name": "sequences", **at, "args": sequences}
        blocks = {
            "live": record.kv_live_tokens / size,
            "fragmented": record.kv_fragmented_tokens / size,
            "reserved": record.kv_reserved_tokens / size,
            "idle": record.kv_idle_tokens / size,
            "cached": record.blocks_cached,
            "free": record.blocks_free,
        }
        yield {"ph": "C", "name": "KV blocks", **at, "args": blocks}
        for name, count in (
            ("preemptions", record.num_preemptions),
            ("prefix hit tokens", record.num_prefix_hit_tokens),
        ):
            if count:
                yield {"ph": "i", "s": "p", "name": f"{count} {name}", "tid": 0, **at}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
