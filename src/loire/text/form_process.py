"""The process that finds out whether a constraint compiles, at a bounded cost.

It holds the vocabulary, and forks for each constraint: the fork compiles under limits of the
operating system, which kills it when it wants more. So nothing that is asked delays what others
ask, and no bound rests on what the library counts.

The first message is marshalled (tokens, eos ids, bos id, special ids); each other one (number,
fields of StructuredOutputs), or (number, None) to give one up that is still compiled. An answer is
the number in four bytes, and what is wrong, or nothing.
"""

import contextlib
import marshal
import os
import resource
import signal
import sys
from typing import BinaryIO

from loire.base.errors import RequestError
from loire.base.signals import leave_to_parent
from loire.base.structured_outputs import StructuredOutputs
from loire.text.form_turns import SLOW_S
from loire.text.grammar import GrammarCompiler, TokenTable, grammar_threads
from loire.text.grammar_text import refuse

MAX_SECONDS = 2.0
"""Of processor time to compile one constraint."""
MAX_MEMORY_BYTES = 3 << 30
"""Of address space, with the vocabulary and the stack of the thread that compiles."""
NICE = 10
"""The engine's steps go first: they are what everybody waits for."""
SLOW_NICE = 15
"""After SLOW_S: two at NICE without end, on two cores, made steps a fifth longer."""
LENGTH_BYTES = 4
NUMBER_BYTES = 4


def main() -> None:
    """Answer what comes on stdin."""
    leave_to_parent(signal.SIGINT)
    source = sys.stdin.buffer
    compiler = GrammarCompiler(TokenTable(*marshal.loads(_message(source))))
    compiler.prepare()
    watchers: dict[int, int] = {}
    while True:
        number, fields = marshal.loads(_message(source))
        if fields is None:
            _give_up(watchers.pop(number, 0))
            continue
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            _watch(compiler, number, StructuredOutputs(**fields))
        watchers = {other: old for other, old in watchers.items() if not _ended(old)} | {
            number: pid
        }


def _ended(pid: int) -> bool:
    """Whether a child has ended. Until it is asked here, its number is no other process's."""
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _give_up(pid: int) -> None:
    """Kill who watches over a constraint and who compiles it, if they are still there."""
    if pid and not _ended(pid):
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # it had not made its group yet
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _watch(compiler: GrammarCompiler, number: int, spec: StructuredOutputs) -> None:
    """Fork once more, wait, and answer for it if it was killed. Does not return."""
    worker = os.fork()
    if worker == 0:
        _limit()
        _answer(number, _compile(compiler, spec))
        os._exit(0)
    nice = os.nice(0) + SLOW_NICE
    signal.signal(signal.SIGALRM, lambda *_: os.setpriority(os.PRIO_PGRP, 0, nice))
    signal.setitimer(signal.ITIMER_REAL, SLOW_S)
    _, status = os.waitpid(worker, 0)
    if status:
        _answer(number, str(refuse(spec, _killed(os.waitstatus_to_exitcode(status)))))
    os._exit(0)


def _limit() -> None:
    os.nice(NICE)
    for limit, value in ((resource.RLIMIT_AS, MAX_MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        _, most = resource.getrlimit(limit)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)


def _compile(compiler: GrammarCompiler, spec: StructuredOutputs) -> str:
    thread = grammar_threads(1)
    try:
        thread.submit(compiler.matcher, spec).result()
    except RequestError as error:
        return str(error)
    return ""


def _killed(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"takes more than {MAX_SECONDS:g} s of processor time to compile: simplify it"
    return f"takes more memory or a deeper stack than there is to compile it (code {code})"


def _answer(number: int, text: str) -> None:
    """Short enough for a pipe to take it as one piece, whoever else writes."""
    data = number.to_bytes(NUMBER_BYTES, "big") + text.encode("utf-8", "replace")[:3000]
    os.write(1, len(data).to_bytes(LENGTH_BYTES, "big") + data)


def _message(source: BinaryIO) -> bytes:
    length = source.read(LENGTH_BYTES)
    data = source.read(int.from_bytes(length, "big"))
    if len(length) < LENGTH_BYTES:
        raise SystemExit(0)  # nobody is there any more
    return data


if __name__ == "__main__":
    main()
