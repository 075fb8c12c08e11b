"""`loire trace` from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from random_traces import random_trace

from loire.cli.main import main
from loire.tracing.storage import Trace, write_traces

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved.jsonl"
    write_traces(path, [Trace("first", random_trace(0)), Trace("second", random_trace(1))])
    return path


def test_the_example_by_default(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["trace"]) == 0
    out = capsys.readouterr().out
    static, continuous = out.split("continuous batching\n")
    assert static.startswith("static batching\n")
    rows = [line.split() for line in (static + continuous).splitlines() if "slot " in line[:5]]
    assert rows[0][2:6] == ["S_1*", "S_1", "S_1", "END"]
    assert len(set(rows[0][6:8])) == 1  # idle, until the batch has ended
    assert rows[4][2:] == ["S_1*", "S_1", "S_1", "END", "S_6*", "S_6", "END"]
    assert "no tokens were computed" in out


def test_a_file(capsys: Capture, saved: Path) -> None:
    assert main(["trace", str(saved)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("first\n")
    assert "\nsecond\n" in out
    assert "no tokens were computed" not in out


def test_steps_cut_the_trace(capsys: Capture, saved: Path) -> None:
    assert main(["trace", str(saved), "--steps", "11:30", "--json"]) == 0
    traces = json.loads(capsys.readouterr().out)["traces"]
    assert [trace["name"] for trace in traces] == ["first", "second"]
    assert [record["step_id"] for record in traces[0]["records"]] == list(range(10, 30))


def test_json_is_the_records(capsys: Capture) -> None:
    assert main(["trace", "--policy", "orca", "--json"]) == 0
    [trace] = json.loads(capsys.readouterr().out)["traces"]
    slots = [slot for record in trace["records"] for slot in record["slots"]]
    assert sum(slot["ended"] for slot in slots) == 7
    assert sum(record["kv_reserved_tokens"] for record in trace["records"]) > 0


def test_pictures(capsys: Capture, saved: Path, tmp_path: Path) -> None:
    outs = {flag: tmp_path / f"out.{flag}" for flag in ("html", "svg", "perfetto")}
    flags = [word for flag, path in outs.items() for word in (f"--{flag}", str(path))]
    assert main(["trace", str(saved), *flags]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("wrote ") == 3
    assert outs["html"].read_text(encoding="utf-8").startswith("<!doctype html>")
    assert outs["svg"].read_text(encoding="utf-8").startswith("<svg ")
    assert json.loads(outs["perfetto"].read_text(encoding="utf-8"))["traceEvents"]


def test_mistakes_are_explained(capsys: Capture, saved: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([str(tmp_path / "none")], "No such file"),
        ([str(saved), "--example"], "draw no file"),
        ([str(saved), "--policy", "static"], "draw no file"),
        (["--steps", "90:99"], "it has steps 1 to 10"),
        (["--html", str(tmp_path / "no" / "page.html")], "cannot be written: No such file"),
    ):
        assert main(["trace", *arguments]) == 1
        assert message in capsys.readouterr().err
    for steps in ("5", "0:3", "7:3", "a:b"):
        with pytest.raises(SystemExit):
            main(["trace", "--steps", steps])
        assert "is not a range of steps" in capsys.readouterr().err


def test_no_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from loire.cli.main import main; "
        f"main(['trace', '--html', {str(tmp_path / 'page.html')!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
