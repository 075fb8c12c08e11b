"""`loire compare` on a tiny model: contracts of its output."""

import argparse
import json
from pathlib import Path

import pytest

from loire.cli import compare as compare_command
from loire.cli.main import main
from loire.tracing.storage import read_traces

NAMES = ["sequential", "static", "orca", "paged", "paged+prefix"]
SMALL = ["--requests", "6", "--prompt", "24", "--output", "6", "--cap", "40", "--dtype", "float32"]


def test_json(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, trace = tmp_path / "page.html", tmp_path / "trace.jsonl"
    arguments = ["compare", str(tiny_llama), *SMALL, "--shared", "16", "--json"]
    assert main([*arguments, "--html", str(page), "--save-trace", str(trace)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in result["policies"]] == NAMES
    for entry in result["policies"]:
        for key in ("output_tokens_per_s", "speedup_over_static", "mean_batch", "kv_live_share"):
            assert entry[key] > 0
        for key in ("steps", "preemptions", "prefix_hit_rate", "kv_pool_share"):
            assert entry[key] >= 0
        for key in ("ttft_s", "tpot_s"):
            assert 0 < entry[key]["p50"] <= entry[key]["p95"] <= entry[key]["p99"]
    by_name = {entry["name"]: entry for entry in result["policies"]}
    assert by_name["sequential"]["steps"] > by_name["static"]["steps"]
    assert by_name["paged+prefix"]["prefix_hit_rate"] > 0
    assert result["kv_pool_tokens"] == 8 * 64
    assert "<h2>" in page.read_text()
    assert [saved.name for saved in read_traces(trace)] == NAMES
    assert main(["trace", str(trace), "--svg", str(tmp_path / "x.svg")]) == 0


def test_table(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tiny_llama), *SMALL, "--policies", "static,paged"]) == 0
    shown = capsys.readouterr().out
    assert "static" in shown
    assert "sequential" not in shown


def test_mistakes(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tiny_llama), *SMALL, "--policies", "best"]) == 1
    assert "there is no policy ['best']" in capsys.readouterr().err
    assert main(["compare", str(tiny_llama), *SMALL, "--trace", "/nowhere"]) == 1
    assert "/nowhere cannot be read" in capsys.readouterr().err


def test_only_a_bare_look_is_small() -> None:
    def size(*arguments: str) -> tuple[bool, int, int, int, int]:
        parser = argparse.ArgumentParser()
        compare_command.add_arguments(parser)
        args = parser.parse_args(arguments)
        small = compare_command._settle_size(args)
        return small, args.requests, args.prompt, args.output, args.cap

    assert size() == size("--html", "x.html") == (True, 48, 64, 32, 384)
    assert size("--json") == size("--requests", "32") == (False, 32, 256, 128, 1536)
    assert size("--cap", "128") == (False, 32, 256, 128, 128)
    assert size("--rate", "2") == size("--shared", "64") == (False, 32, 256, 128, 1536)
