"""Ctrl-C and SIGTERM while a process starts, and how one with a busy thread ends."""

import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest

from loire.base.signals import held_back

INTERRUPTED = -signal.SIGINT
END_AT_ONCE = """
import os, signal
from loire.base.signals import end_at_once
with end_at_once():
    os.kill(os.getpid(), signal.{name})
"""
CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("begun", flush=True)
sys.stdin.readline()
from loire.base.signals import leave_to_parent
leave_to_parent(signal.SIGINT)
print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
BUSY = """
import sys, threading
from loire.base.foreign_threads import end_process, foreign_thread
foreign_thread("busy", threading.Event().wait)
print("said", end="")
sys.exit(end_process(3) + 1)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_process_that_starts_ends_without_a_word(name: str) -> None:
    program = END_AT_ONCE.format(name=name)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode == -getattr(signal, name)
    assert ended.stderr == b""


@pytest.mark.parametrize("held", [True, False])
def test_ctrl_c_does_not_meet_a_child_before_it_can_ignore_it(held: bool) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with (
        held_back(signal.SIGINT) if held else nullcontext(),
        subprocess.Popen(
            [sys.executable, "-c", CHILD], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate("\n" if held else None)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert (child.returncode, said) == ((0, "False\n") if held else (INTERRUPTED, ""))


def test_a_thread_at_work_in_a_library_does_not_see_the_interpreter_end() -> None:
    ended = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"said", b"")
