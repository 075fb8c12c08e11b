"""Saved traces come back as they were; damaged ones are refused with the line."""

import json
import random
from pathlib import Path

import pytest
from random_traces import random_trace

from loire.base.errors import ConfigError
from loire.tracing.storage import Trace, TraceWriter, read_traces, write_traces
from loire.tracing.svg import render_svg
from loire.workloads.seven_requests import run_seven_requests


def test_traces_survive(tmp_path: Path) -> None:
    traces = [
        Trace("paged", random_trace(0)),
        Trace("at depth 2", random_trace(1, depth=2)),
        Trace("static – ‘ü’", random_trace(1, "static")),
        Trace("nothing", ()),
    ]
    write_traces(tmp_path / "trace.jsonl", traces)
    assert read_traces(tmp_path / "trace.jsonl") == traces


def test_a_running_engine_can_write(tmp_path: Path) -> None:
    records = random_trace(3)
    path = tmp_path / "trace.jsonl"
    with path.open("w", encoding="utf-8") as file:
        writer = TraceWriter(file, "live")
        for count, record in enumerate(records[:50], start=1):
            writer.write(record)
            if count % 20 == 0:
                file.flush()
                assert read_traces(path) == [Trace("live", records[:count])]


def example(tmp_path: Path) -> list[str]:
    path = tmp_path / "example.jsonl"
    write_traces(path, [Trace("static", tuple(run_seven_requests("static")))])
    return path.read_text(encoding="utf-8").splitlines()


def changed(line: str, index: int, value: object) -> str:
    fields = json.loads(line)
    fields[index] = value
    return json.dumps(fields)


def test_damage_is_named_with_its_line(tmp_path: Path) -> None:
    lines = example(tmp_path)
    step = next(i for i, line in enumerate(lines) if line.startswith("[1,"))
    header = json.loads(lines[0])
    damage: list[tuple[int, str, str]] = [
        (0, json.dumps({**header, "format": "else"}), "format is 'else'"),
        (0, json.dumps({**header, "version": 9}), "version is 9, but this Loire reads 2"),
        (0, json.dumps({**header, "slot": ["slot"]}), "fields of steps or slots"),
        (0, json.dumps({**header, "name": 3}), "no name"),
        (0, "[1, 2, 3]", "does not begin with"),
        (1, "17", "a header, a sequence or a step"),
        (1, '["S_1", -1]', "seq_id must be a whole number from 0, but is -1"),
        (1, "[7, 0]", "a request id is text, not 7"),
        (2, lines[1], "sequence 0 is introduced twice"),
        (step, lines[step][:-4], "not JSON"),
        (step, "[" * 100_000, "not JSON"),
        (step, "[1, 2, 3]", "a step has 15 fields, but this has 3"),
        (step, changed(lines[step], 1, float("nan")), "time_s must be from 0"),
        (step, changed(lines[step], 1, "soon"), "time_s must be a number of seconds"),
        (step, changed(lines[step], 2, True), "compute_s must be a number of seconds"),
        (step, changed(lines[step], 2, 10**400), "compute_s must be from 0"),
        (step, changed(lines[step], 3, 2**63), "num_running must be a whole number"),
        (step, changed(lines[step], 4, 1.5), "num_waiting must be a whole number from 0"),
        (step, changed(lines[step], 5, 70), "sum to 79, but to 16 in the step before"),
        (step, changed(lines[step], 0, 0), "step 0 comes after step 0"),
        (step, changed(lines[step], 1, 1.0), "comes after one at"),
        (step, changed(lines[step], 14, {}), "slots of a step are a list"),
        (step, changed(lines[step], 14, [[0, 0, 0]]), "a slot is a list of 6 numbers"),
        (step, changed(lines[step], 14, [[0, 99, 0, 1, 0, 0]]), "sequence 99 was not introduced"),
        (step, changed(lines[step], 14, [[2**40, 0, 0, 1, 0, 0]]), "slots are below 65536"),
        (step, changed(lines[step], 14, [[0, 0, 0, 1, 2, 0]]), "ended is 0 or 1"),
        (step, changed(lines[step], 14, [[0, 0, 0, 1, 0, 0]] * 2), "a slot occurs twice"),
    ]
    path = tmp_path / "damaged.jsonl"
    for index, line, message in damage:
        path.write_text("\n".join([*lines[:index], line, *lines[index + 1 :]]), encoding="utf-8")
        with pytest.raises(ConfigError, match=f"line {index + 1}: .*{message}"):
            read_traces(path)


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_traces(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="is empty"):
        read_traces(path)
    path.write_bytes(b"\x80\x81\x82")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_traces(path)
    with path.open("w") as file:
        file.write("[" + "1," * 2**23 + "1]")
    with pytest.raises(ConfigError, match="line 1: it has more than 16,777,216 characters"):
        read_traces(path)
    with pytest.raises(ConfigError, match="cannot be saved"):
        write_traces(tmp_path / "no" / "room", [])


def test_random_damage_is_refused_or_drawn(tmp_path: Path) -> None:
    original = ("\n".join(example(tmp_path)) + "\n").encode()
    path = tmp_path / "damaged.jsonl"
    rng, refused = random.Random(5), 0
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice(b'0123456789,[]{}"-.e\n\x00\xff')
        whole = rng.random() < 0.5
        path.write_bytes(data if whole else data[: rng.randint(len(data) // 2, len(data))])
        try:
            traces = read_traces(path)
        except ConfigError:
            refused += 1
        else:
            render_svg(traces)
    assert 50 < refused < 300
