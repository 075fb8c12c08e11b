"""Ctrl-C in `loire chat`, in a terminal: it stops the answer, and the conversation goes on."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROMPT = b"> "
SEEN_AT_MOST_S = 120.0
WINDOW = 2**18

# Makes the terminal on its standard input the controlling one, so that Ctrl-C comes as a signal.
IN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "loire", *sys.argv[1:]])
"""


class Terminal:
    """A `loire` verb in a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.screen = b""
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-c", IN_TERMINAL, *arguments]
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read(self) -> bool:
        """Take in what was written; False at its end."""
        ready, _, _ = select.select([self._ours], [], [], SEEN_AT_MOST_S)
        assert ready, f"nothing more came after {self.screen[-2000:]!r}"
        try:
            data = os.read(self._ours, 4096)
        except OSError:  # what Linux says when the other side is closed
            return False
        self.screen += data
        return bool(data)

    def wait_for(self, text: bytes) -> None:
        """Read on until this is on the screen, and clear it."""
        while text not in self.screen:
            assert self.read(), f"ended with {self.screen[-2000:]!r}"
        self.screen = self.screen.partition(text)[2]

    def close(self) -> None:
        os.close(self._ours)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def talker(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model with a window that no answer fills while this test looks away."""
    folder = tmp_path / "talker"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = WINDOW
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_ctrl_c_stops_the_answer_alone(talker: Path) -> None:
    options = ("--dtype", "float32", "--kv-cache-memory", "256MB", "--num-threads", "1")
    terminal = Terminal("chat", str(talker), *options, "--ignore-eos")
    try:
        terminal.wait_for(PROMPT)
        for number in range(4):
            question = f"question {number}".encode()
            terminal.type(question + b"\n")
            terminal.wait_for(question)
            while len(terminal.screen) < 4 + 10 * number:
                assert terminal.read(), terminal.screen
            terminal.type(b"\x03")
            terminal.wait_for(PROMPT)
            terminal.type(b"/reset\n")
            terminal.wait_for(PROMPT)
        terminal.type(b"/quit\n")
        while terminal.read():
            pass
        assert terminal.process.wait(SEEN_AT_MOST_S) == 0, terminal.screen
    finally:
        terminal.close()
