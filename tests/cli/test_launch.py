"""loire launch: what a client is told, over a server that runs and over one that it starts."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loire.cli.launch_clients import CLIENTS, Target
from loire.cli.main import main
from support.fake_engine import FakeEngine, serving

CLIENT = """#!{python}
import json, os, sys
told = {{"arguments": sys.argv[1:], "variables": dict(os.environ)}}
open({told!r}, "w").write(json.dumps(told))
raise SystemExit(7)
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every client is a script that writes here what it was told."""
    told, programs = tmp_path / "told.json", tmp_path / "programs"
    programs.mkdir()
    for name in CLIENTS:
        file = programs / name
        file.write_text(CLIENT.format(python=sys.executable, told=str(told)))
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOIRE_HOME", str(tmp_path / "home"))
    return told


@pytest.fixture
def url(tiny_llama: Path) -> Iterator[str]:
    with serving(FakeEngine(tiny_llama, window=300_000)) as address:
        yield address


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_is_told_of_the_server_that_runs(
    name: str, told: Path, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", name, "--url", url, "--", "--help", "me"]) == 7
    found = json.loads(told.read_text())
    everything = json.dumps(found)
    assert found["arguments"][-2:] == ["--help", "me"]
    assert url in everything
    assert "tiny" in everything
    if name != "claude":  # which has no variable for it
        files = "".join(path.read_text() for path in told.parent.rglob("*.json"))
        assert "300000" in everything + files
    assert "300,000 tokens" in capfd.readouterr().err


@pytest.mark.parametrize("name", CLIENTS)
def test_print_writes_what_a_shell_would_do_the_same_with(
    name: str, told: Path, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", name, "--url", url, "--print", "--", "x y"]) == 0
    script = capfd.readouterr().out
    assert not told.exists()
    assert subprocess.run(["sh", "-c", script], check=False).returncode == 7
    by_shell = json.loads(told.read_text())
    main(["launch", name, "--url", url, "--", "x y"])
    by_launch = json.loads(told.read_text())
    ours = {"PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES"}
    assert by_shell["arguments"] == by_launch["arguments"]
    assert {k: v for k, v in by_shell["variables"].items() if k not in ours} == {
        k: v for k, v in by_launch["variables"].items() if k not in ours
    }


def test_print_starts_a_server_where_none_runs(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loire.cli.launch.URL", "http://127.0.0.1:9")
    assert main(["launch", "codex", "--model", str(tiny_llama), "--print"]) == 0
    first, second, *_ = capfd.readouterr().out.splitlines()
    assert first == f"loire serve {tiny_llama} &"
    assert "http://127.0.0.1:9/health/ready" in second


def test_a_key_is_passed_on_and_not_shown(
    told: Path, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOIRE_API_KEY", "sk-secret")
    main(["launch", "claude", "--url", url, "--print"])
    assert "sk-secret" not in capfd.readouterr().out
    main(["launch", "claude", "--url", url])
    assert json.loads(told.read_text())["variables"]["ANTHROPIC_AUTH_TOKEN"] == "sk-secret"


def test_what_cannot_be_is_said(
    told: Path, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "codex", "--url", "http://127.0.0.1:9"]) == 1
    assert "nothing answers at http://127.0.0.1:9" in capfd.readouterr().err
    assert main(["launch", "codex", "--url", url, "--model", "other"]) == 1
    assert "serves tiny, not other" in capfd.readouterr().err
    assert main(["launch", "codex", "--url", f"{url}/docs"]) == 1
    assert "404" in capfd.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["launch", "codex", "--url", url]) == 1
    assert "codex is not installed: npm install" in capfd.readouterr().err
    assert not told.exists()


def test_a_short_window_is_said(
    told: Path, tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(FakeEngine(tiny_llama, window=4096)) as url:
        main(["launch", "codex", "--url", url])
    assert "that is little: codex begins with about 12,000 tokens" in capfd.readouterr().err


def test_a_server_is_started_where_none_runs_and_ends_with_the_client(
    told: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loire.cli.launch.URL", "http://127.0.0.1:9")
    # The folder in which an agent works may hold anything, also what `python -m loire` would run.
    folder = told.parent / "downloaded"
    folder.mkdir()
    for name in ("loire", "runpy", "torch", "msgspec", "uvicorn"):
        (folder / f"{name}.py").write_text("open('RAN', 'a').write(__name__)")
    monkeypatch.chdir(folder)
    assert main(["launch", "opencode", "--model", str(tiny_llama)]) == 7
    assert not (folder / "RAN").exists()
    config = json.loads(json.loads(told.read_text())["variables"]["OPENCODE_CONFIG_CONTENT"])
    address = config["provider"]["loire"]["options"]["baseURL"]
    assert config["model"] == f"loire/{tiny_llama}"
    # Its log tells of its end.
    log = (told.parent / "home" / "launch" / "serve.log").read_text()
    assert address.removesuffix("/v1") in log
    assert log.rstrip().endswith("stopped")
    monkeypatch.setattr("loire.cli.launch.URL", "http://127.0.0.1:9")
    assert main(["launch", "opencode", "--model", str(told.parent / "nothing")]) == 1
    assert "the server has stopped" in capfd.readouterr().err


def test_answers_are_a_share_of_the_window() -> None:
    def target(window: int) -> Target:
        return Target(url="u", model="m", window=window, key="k")

    assert target(8192).longest_answer == 2048
    assert target(1_000_000).longest_answer == 32_000
    assert shlex.split(shlex.join(CLIENTS["codex"].setup(target(1), Path()).command))
