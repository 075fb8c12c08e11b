"""Key files: changed by `loire keys`, and read again by a server that runs."""

import asyncio
import os
import stat
from pathlib import Path

import httpx
import pytest

from loire.base.errors import ConfigError
from loire.cli.main import main
from loire.server.access.key_sources import KeySources
from loire.server.access.options import Access, AccessOptions
from loire.server.access.rates import Limits
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}\n")
    path.chmod(0o600)
    return path


def settled(file: Path) -> Access:
    return AccessOptions(keys=KeySources([file])).settle("127.0.0.1", {})


def check(access: Access) -> None:
    assert access.key_watch is not None
    access.key_watch.check()


def names(access: Access) -> list[str]:
    return [key.name for key in access.ring.keys]


# --- the verb ---------------------------------------------------------------------------------


def test_keys_are_added_listed_and_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    at = ["--file", str(file)]
    previous = os.umask(0)
    try:
        assert main(["keys", "add", "alice", *at, "--concurrency", "3"]) == 0
    finally:
        os.umask(previous)
    key = capsys.readouterr().out.strip()
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(["keys", "add", "bob", *at]) == 0
    capsys.readouterr()
    assert main(["keys", "list", *at]) == 0
    assert capsys.readouterr().out.splitlines() == ["alice  concurrency=3", "bob"]
    found = settled(file).ring.find(key.encode())
    assert found is not None
    assert (found.name, found.limits) == ("alice", Limits(concurrency=3))
    assert main(["keys", "revoke", "alice", *at]) == 0
    assert names(settled(file)) == ["bob"]


def test_files_of_windows_are_read(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + f"alice:{ALICE}\r\n# bob:\r\n".encode())
    assert names(settled(file)) == ["alice"]
    assert main(["keys", "add", "bob", "--file", str(file)]) == 0
    assert names(settled(file)) == ["alice", "bob"]


def test_what_else_is_in_the_file_stays(file: Path) -> None:
    text = f"# the team's\n\n  alice:{ALICE}   concurrency=2\n"
    file.write_text(text)
    assert main(["keys", "add", "bob", "--file", str(file)]) == 0
    assert file.read_text().startswith(text)
    assert main(["keys", "revoke", "bob", "--file", str(file)]) == 0
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "alice"], ["'alice'", "name"]),
        (["add", "a b"], ["1 to 64 letters"]),
        (["add", "sha256"], ["name"]),
        (["add", "bob", "--concurrency", "0"], ["at least 1"]),
        (["revoke", "carol"], ["'carol'", "alice"]),
    ],
)
def test_mistakes_change_nothing(
    arguments: list[str], words: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_text()
    assert main(["keys", *arguments, "--file", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    for word in words:
        assert word in captured.err
    assert file.read_text() == before


def test_a_wrong_file_is_not_changed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("alice:short\n")
    assert main(["keys", "add", "bob", "--file", str(file)]) == 1
    assert "line 1" in capsys.readouterr().err
    assert file.read_text() == "alice:short\n"
    assert main(["keys", "list", "--file", str(file.with_name("missing"))]) == 1
    assert main(["keys", "add", "bob", "--file", str(file / "below")]) == 1


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert main(["keys", "add", "bob", "--file", str(link)]) == 0
    assert link.is_symlink()
    assert names(settled(file)) == ["alice", "bob"]


# --- a server that runs -----------------------------------------------------------------------


def test_keys_come_and_go_without_a_restart(file: Path, tiny_llama: Path) -> None:
    access = settled(file)
    app = create_app(ServedModel([NAME], FakeEngine(tiny_llama)), access)

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [
                (await client.get("/v1/models", headers={"x-api-key": key})).status_code
                for key in (ALICE, BOB)
            ]

    assert asyncio.run(statuses()) == [200, 401]
    file.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    check(access)
    assert asyncio.run(statuses()) == [200, 200]
    file.write_text(f"bob:{BOB}\n")
    check(access)
    assert asyncio.run(statuses()) == [401, 200]
    file.write_text("")
    check(access)
    assert asyncio.run(statuses()) == [401, 401], "without its last key a server must not open"


def test_a_broken_file_changes_nothing_and_is_told_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = settled(file)
    check(access)
    for text, reason in (
        ("alice:short\n", "at least 16"),
        (f"a:{BOB}\na:{ALICE}\n", "two keys"),
        (f"alice:{ALICE} concurrency={'9' * 5000}\n", "at most"),
    ):
        caplog.clear()
        file.write_text(text)
        for _ in range(3):
            check(access)
        [record] = caplog.records
        assert reason in record.getMessage()
        assert "the keys read before stay" in record.getMessage()
        assert names(access) == ["alice"]
    for put in (
        lambda: os.mkfifo(file),  # which would wait for a writer
        lambda: None,
        file.mkdir,
        lambda: file.symlink_to(file),
        lambda: file.symlink_to("/dev/zero"),
        lambda: (file.touch(0o600), os.truncate(file, 2**34)),
        lambda: file.write_bytes(b"\xff\xfe" * 1_000),
    ):
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        caplog.clear()
        put()
        for _ in range(3):
            check(access)
        [record] = caplog.records
        assert "the keys read before stay" in record.getMessage()
        assert names(access) == ["alice"]
    file.write_text(f"bob:{BOB}\n")
    check(access)
    assert names(access) == ["bob"]


def test_rights_count_as_a_change(file: Path) -> None:
    access = settled(file)
    check(access)
    file.write_text(f"bob:{BOB}\n")
    file.chmod(0o666)
    check(access)
    assert names(access) == ["alice"]
    file.chmod(0o600)
    check(access)
    assert names(access) == ["bob"]


def test_a_file_that_others_can_read_is_warned_of(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settled(file)
    assert not caplog.records
    file.chmod(0o644)
    assert names(settled(file)) == ["alice"]
    assert "chmod 600" in caplog.text


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, f"alice:{ALICE}\n".encode())
    os.close(writing)
    try:
        access = settled(Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
    assert names(access) == ["alice"]
    assert access.key_watch is None


def test_a_tenant_keeps_what_it_used_while_other_keys_change(file: Path, tiny_llama: Path) -> None:
    limited = "requests-per-minute=1"
    file.write_text(f"alice:{ALICE} {limited}\n")
    access = settled(file)
    app = create_app(ServedModel([NAME], FakeEngine(tiny_llama)), access)

    async def status(key: str) -> int:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"model": NAME, "prompt": "a"}
            headers = {"x-api-key": key}
            return (await client.post("/tokenize", json=body, headers=headers)).status_code

    assert asyncio.run(status(ALICE)) == 200
    file.write_text(f"bob:{BOB}\nalice:another-key-0123456 {limited}\n")
    check(access)
    assert asyncio.run(status("another-key-0123456")) == 429
    assert asyncio.run(status(BOB)) == 200


def test_an_unnamed_key_is_the_same_tenant_whatever_is_beside_it(file: Path) -> None:
    file.write_text(f"{ALICE}\n{BOB}\n")
    access = settled(file)
    bob = access.ring.find(BOB.encode())
    file.write_text(f"{BOB}\n")
    check(access)
    assert access.ring.find(BOB.encode()) == bob


def test_two_files_may_not_have_one_name(file: Path) -> None:
    with pytest.raises(ConfigError, match="'alice'"):
        AccessOptions(keys=KeySources([file], [file])).settle("127.0.0.1", {})
