"""What was written is there whatever happens next, whole or not at all."""

import errno
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from loire.server.storage.database import Database

TABLE = "CREATE TABLE IF NOT EXISTS pairs (number INTEGER, half TEXT)"
WRITER = """
import sys
from pathlib import Path
from loire.server.storage.database import Database

database = Database(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9):
    with database.transaction() as connection:
        connection.execute("INSERT INTO pairs VALUES (?, 'first')", (number,))
        connection.execute("INSERT INTO pairs VALUES (?, 'second')", (number,))
    print(number, flush=True)
"""


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "database"
    database = Database(path)
    database.write(TABLE)
    database.close()
    last = -1
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(path), str(last + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(20):
                last = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
        last = int(rest[-1]) if rest else last
        database = Database(path)
        halves = database.read("SELECT number, count(*) FROM pairs GROUP BY number ORDER BY number")
        database.close()
        assert {count for _, count in halves} == {2}, "never half of a transaction"
        # One more may be there than was told.
        assert [number for number, _ in halves][: last + 1] == list(range(last + 1))
        assert len(halves) <= last + 2
        last = len(halves) - 1


def test_a_transaction_that_fails_leaves_nothing() -> None:
    database = Database(None)
    database.write(TABLE)

    def half() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO pairs VALUES (1, 'first')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    with pytest.raises(OSError, match="no such table"):
        database.write("INSERT INTO nowhere VALUES (1)")
    assert database.read("SELECT * FROM pairs") == []
    database.write("INSERT INTO pairs VALUES (1, 'first')")
    assert database.read("SELECT number FROM pairs") == [(1,)]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    database = Database(tmp_path / "database")
    database.write(TABLE)
    [(pages,)] = database.read("PRAGMA page_count")
    database.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="full") as caught:
        database.write("INSERT INTO pairs VALUES (1, ?)", "x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    database.read("PRAGMA max_page_count = 100000")
    database.write("INSERT INTO pairs VALUES (1, ?)", "x" * 100_000)


def test_what_is_no_database_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "database").write_bytes(b"no database" * 100)
    with pytest.raises(OSError, match="not a database"):
        Database(tmp_path / "database")


def test_mistakes_are_not_the_disks() -> None:
    database = Database(None)
    database.write("CREATE TABLE names (name TEXT PRIMARY KEY)")
    database.write("INSERT INTO names VALUES ('a')")
    with pytest.raises(sqlite3.IntegrityError):
        database.write("INSERT INTO names VALUES ('a')")
    assert database.read("SELECT * FROM names") == [("a",)]
