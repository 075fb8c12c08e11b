"""The audit log: a line per call, with nothing of what was said."""

import json
import stat
import threading
from pathlib import Path

import pytest

from loire.base.errors import ConfigError
from loire.server.observe import audit_log
from loire.server.observe.audit_log import AuditLog
from loire.server.web.call import Call


def call(number: int = 0) -> Call:
    return Call(f"call-{number}", "POST", "/v1/completions", "alice", "192.0.2.1", status=200)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_what_when_and_how(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path)
    forged = Call("call-1", "GET", "/\n{}" + "x" * 5000, status=404, start_unix_s=0.0)
    log.add(call())
    log.add(forged)
    log.close()
    [first, second] = read(path)
    assert first.pop("time") != second["time"]
    assert first == {
        "request_id": "call-0", "tenant": "alice", "address": "192.0.2.1", "method": "POST",
        "path": "/v1/completions", "status": 200, "error": None,
    }  # fmt: skip
    assert second["time"] == "1970-01-01T00:00:00.000+00:00"
    assert len(str(second["path"])) == audit_log.MAX_PATH
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_goes_on_where_it_ended_and_when_it_was_moved_away(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit", tmp_path / "audit.1"
    for number in range(2):
        log = AuditLog(path)
        log.add(call(number))
        log.close()
    assert len(read(path)) == 2
    log = AuditLog(path)
    path.rename(moved)
    log.add(call())
    log.close()
    assert (len(read(moved)), len(read(path))) == (2, 1)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="audit log"):
        AuditLog(tmp_path / "missing" / "audit")


def test_a_failing_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, away = tmp_path / "logs", tmp_path / "away"
    folder.mkdir()
    log = AuditLog(folder / "audit")
    folder.rename(away)
    for number in range(3):
        log.add(call(number))
    log._waiting.join()
    assert len([r for r in caplog.records if "cannot be written" in r.getMessage()]) == 1
    away.rename(folder)
    log.add(call(9))
    log.close()
    assert [line["request_id"] for line in read(folder / "audit")] == ["call-9"]


def test_a_slow_disk_delays_nothing_and_loses_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_log, "MAX_WAITING", 2)
    log = AuditLog(tmp_path / "audit")
    lock = log._file.lock or threading.RLock()
    with lock:
        for number in range(20):
            log.add(call(number))
    log._waiting.join()
    log.add(call(20))
    log.close()
    written = len(read(tmp_path / "audit"))
    assert 3 <= written <= 4
    assert f"lost {21 - written} lines" in caplog.text
