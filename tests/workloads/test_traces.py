"""Traces are read line by line, and say which line they cannot read."""

import json
from pathlib import Path

import pytest

from loire.base.errors import ConfigError
from loire.workloads.traces import MOONCAKE_BLOCK, TraceEntry, read_trace, trace_load


def write(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "trace"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def test_azure(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:46.6805900,374,44",
        "2023-11-16 18:15:50.9305900,396,109",
    )
    assert read_trace(path) == [TraceEntry(0.0, 374, 44), TraceEntry(pytest.approx(4.25), 396, 109)]


def test_own_form_in_order_of_arrival(tmp_path: Path) -> None:
    late = {"arrival_s": 9.5, "num_prompt": 10, "num_output": 3}
    early = {"arrival_s": 2.0, "num_prompt": 20, "num_output": 4}
    assert read_trace(write(tmp_path, late, early)) == [
        TraceEntry(0.0, 20, 4),
        TraceEntry(7.5, 10, 3),
    ]


def test_mooncake_shares_blocks(tmp_path: Path) -> None:
    def line(ms: int, length: int, ids: list[int]) -> dict[str, object]:
        return {"timestamp": ms, "input_length": length, "output_length": 5, "hash_ids": ids}

    path = write(tmp_path, line(0, 1100, [1, 2, 3]), line(1500, 900, [1, 4]))
    entries = read_trace(path)
    assert [entry.arrival_s for entry in entries] == [0.0, 1.5]
    load = trace_load("m", entries, vocab_size=5000, max_model_len=2000, max_output=8)
    one, other = (request.prompt_token_ids for request in load.requests)
    assert (len(one), len(other)) == (1100, 900)
    assert one[:MOONCAKE_BLOCK] == other[:MOONCAKE_BLOCK]
    assert (
        one[MOONCAKE_BLOCK : MOONCAKE_BLOCK + 100] != other[MOONCAKE_BLOCK : MOONCAKE_BLOCK + 100]
    )


def test_lengths_are_cut_to_the_window_and_time_is_compressed() -> None:
    entries = [TraceEntry(0.0, 5000, 900), TraceEntry(10.0, 0, 0)]
    load = trace_load("t", entries, vocab_size=5000, max_model_len=300, max_output=100, speed=4)
    assert [len(r.prompt_token_ids) for r in load.requests] == [200, 1]
    assert [r.num_output for r in load.requests] == [100, 1]
    assert [r.arrival_s for r in load.requests] == [0.0, 2.5]
    assert load == trace_load(
        "t", entries, vocab_size=5000, max_model_len=300, max_output=100, speed=4
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,2"],
            "line 2, is not of an Azure",
        ),
        (["TIMESTAMP,ContextTokens", "2023-11-16 18:15:46,1"], "line 2"),
        (['{"arrival_s": 0, "num_prompt": 1, "num_output": 1}', "{"], "line 2, has not the fields"),
        (['{"arrival_s": 0, "num_prompt": -1, "num_output": 1}'], "a length of -1 tokens"),
        (['{"arrival_s": 0, "num_prompt": 99999999, "num_output": 1}'], "99999999 tokens"),
        ([""], "holds no requests"),
    ],
)
def test_damaged(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_trace(write(tmp_path, *lines))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none")
