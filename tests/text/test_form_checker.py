"""Checking a constraint costs a bounded time, and delays nobody else's."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from loire.base.errors import BusyError, EngineError, RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.checkpoint.open import open_checkpoint
from loire.text import form_checker, form_turns
from loire.text.child_process import ChildProcess
from loire.text.form_checker import FormChecker
from loire.text.form_process import MAX_SECONDS, SLOW_NICE
from loire.text.form_turns import FormTurns, NobodyWaitsError
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer

OPTIONAL = "".join(f"[{chr(97 + index % 26)}-z]?" for index in range(10_000))
EXPENSIVE = {
    "a regex of optional parts": StructuredOutputs(regex=OPTIONAL),
    "a terminal": StructuredOutputs(grammar=f"start: WORD\nWORD: /{OPTIONAL}/"),
}
"""Each takes ten seconds and more where nothing stops it."""


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Tokenizer:
    return checkpoint_tokenizer(open_checkpoint(tiny_llama))


@pytest.fixture(scope="module")
def checker(tokenizer: Tokenizer) -> Iterator[FormChecker]:
    checker = FormChecker(tokenizer)
    yield checker
    checker.close()


@pytest.mark.parametrize("name", EXPENSIVE)
def test_compiling_is_bounded_and_the_refusal_names_the_bound(
    checker: FormChecker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_checker, "PATIENCE_S", 15)
    bounds = f"more than {MAX_SECONDS:g} s of processor time|within 15 s"
    with pytest.raises((RequestError, BusyError), match=bounds):  # the other on a busy machine
        checker.check(EXPENSIVE[name])
    checker.check(StructuredOutputs(choice=("still here",)))


def test_a_refusal_may_be_cut_within_a_character(checker: FormChecker) -> None:
    for begins in ("", "a", "aa"):
        schema = {"type": "string", "format": begins + "\u20ac" * 3_000}
        with pytest.raises(RequestError, match="'format' at #"):
            checker.check(StructuredOutputs(json=schema))


def test_others_go_on_while_one_is_compiled(checker: FormChecker) -> None:
    num_ended, gone = 0, Future[None]()

    def expensive() -> None:
        nonlocal num_ended
        for letter in "bcdef":
            with pytest.raises((RequestError, NobodyWaitsError)):
                checker.check(StructuredOutputs(regex=OPTIONAL + letter), "a", gone)
            num_ended += 1

    thread = threading.Thread(target=expensive)
    thread.start()
    for number in range(20):
        checker.check(StructuredOutputs(choice=(f"quick {number}",)), share="b")
    assert num_ended < 5, "twenty small ones do not wait for five that are stopped"
    gone.set_result(None)
    thread.join()


def test_a_share_waits_for_itself_and_no_crowd_gathers(
    checker: FormChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_turns, "MAX_WAITING", 2)
    answers: list[str] = []
    gone: Future[None] = Future()

    def expensive(number: int) -> None:
        try:
            checker.check(StructuredOutputs(regex=OPTIONAL + str(number)), "a", gone)
        except (BusyError, RequestError, NobodyWaitsError) as error:
            answers.append(str(error))

    threads = [threading.Thread(target=expensive, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    checker.check(StructuredOutputs(choice=("not in their line",)), share="b")
    gone.set_result(None)
    for thread in threads:
        thread.join()
    assert len(answers) == 5
    assert sum("2 other constraints wait" in answer for answer in answers) == 2


def test_answers_are_kept(checker: FormChecker, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = StructuredOutputs(choice=("kept",)), StructuredOutputs(regex="(")
    checker.check(good)
    with pytest.raises(RequestError) as first:
        checker.check(bad)
    monkeypatch.setattr(checker, "_running", lambda: pytest.fail("it was asked already"))
    checker.check(good)
    with pytest.raises(RequestError) as second:
        checker.check(bad)
    assert str(first.value) == str(second.value)
    assert first.value.param == "structured_outputs"


def test_shares_take_turns_however_many_one_has_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_turns, "MAX_AT_ONCE", 1)
    turns = FormTurns()
    order: list[str] = []
    threads = []

    def compile_one(share: str) -> None:
        with turns.turn(share):
            order.append(share)

    with turns.turn("first"):
        for share in "aaabab":
            threads.append(threading.Thread(target=compile_one, args=(share,)))
            threads[-1].start()
            while sum(turns._waiting.values()) < len(threads):
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert "".join(order) == "ababaa"


def test_what_takes_long_gives_up_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAX_AT_ONCE", 1), ("MAX_SLOW", 1), ("SLOW_S", 0), ("LOOK_S", 0.001)):
        monkeypatch.setattr(form_turns, name, value)
    turns = FormTurns()
    with turns.turn("slow"), turns.turn("next"):
        begun = threading.Event()

        def third() -> None:
            with turns.turn("third"):
                begun.set()

        thread = threading.Thread(target=third)
        thread.start()
        assert not begun.wait(0.02), "one slow one and one more are as many as there are"
    thread.join()
    assert begun.is_set()


def test_what_takes_long_has_what_nobody_else_wants(tokenizer: Tokenizer) -> None:
    checker = FormChecker(tokenizer)
    checker.prepare()
    assert checker._link is not None
    process, gone = psutil.Process(checker._link._child.pid), Future[None]()

    def expensive() -> None:
        with pytest.raises(NobodyWaitsError):
            checker.check(StructuredOutputs(regex=OPTIONAL), "a", gone)

    thread = threading.Thread(target=expensive)
    thread.start()
    seen, wanted = set[int](), min(os.nice(0) + SLOW_NICE, 19)
    while wanted not in seen and thread.is_alive():
        with suppress(psutil.NoSuchProcess):
            children = process.children(recursive=True)
            # Of a thread, by its number.
            seen |= {psutil.Process(t.id).nice() for child in children for t in child.threads()[1:]}
        time.sleep(0.01)
    gone.set_result(None)
    thread.join()
    checker.close()
    assert wanted in seen


def test_patience_that_ends_is_nobody_elses_trouble(
    checker: FormChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker.prepare()
    link = checker._link
    with monkeypatch.context() as patch:
        patch.setattr(form_checker, "PATIENCE_S", 0.05)
        with pytest.raises(BusyError, match=r"regex was not compiled within 0\.05 s"):
            checker.check(StructuredOutputs(regex=OPTIONAL + "z"))
    checker.check(StructuredOutputs(choice=("after it",)))
    assert checker._link is link
    assert not link._waiting


def test_nothing_is_compiled_for_a_client_that_has_gone(tokenizer: Tokenizer) -> None:
    checker = FormChecker(tokenizer)
    checker.prepare()
    assert checker._link is not None
    link, process = checker._link, psutil.Process(checker._link._child.pid)
    gone: list[Future[None]] = [Future(), Future()]
    ends: list[Exception] = []

    def expensive(number: int) -> None:
        form = StructuredOutputs(regex=OPTIONAL + str(number))
        try:
            checker.check(form, share="a", abandoned=gone[number])
        except (NobodyWaitsError, RequestError) as error:
            ends.append(error)

    threads = [threading.Thread(target=expensive, args=(number,)) for number in range(2)]
    threads[0].start()
    while len(process.children(recursive=True)) < 2:  # who watches, who compiles
        time.sleep(0.001)
    threads[1].start()
    while not checker._turns._waiting["a"]:
        time.sleep(0.001)
    gone[1].set_result(None)  # the one in the line
    threads[1].join()
    gone[0].set_result(None)
    threads[0].join()
    assert [type(end) for end in ends] == [NobodyWaitsError, NobodyWaitsError]
    assert not link._waiting
    assert not checker._turns._active
    assert not checker._turns._waiting
    while any(child.status() != psutil.STATUS_ZOMBIE for child in _alive(process)):
        time.sleep(0.001)
    checker.check(StructuredOutputs(choice=("the share goes on",)), share="a")
    assert checker._link is link
    checker.close()


def _alive(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.is_running()]


@pytest.fixture
def scripted(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FormChecker]:
    """A checker whose process finds no time for one constraint, and dies of another."""
    folder = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((folder, os.environ.get("PYTHONPATH", ""))))

    def start(module: str) -> ChildProcess:
        return ChildProcess("support.scripted_forms")

    monkeypatch.setattr(form_checker, "ChildProcess", start)
    checker = FormChecker(tokenizer)
    yield checker
    checker.close()


def asked(checker: FormChecker, word: str, share: str) -> "tuple[threading.Thread, list[str]]":
    """A thread that has asked for it, and what becomes of it."""
    ends: list[str] = []
    link = checker._running()
    before = len(link._waiting)

    def ask() -> None:
        try:
            checker.check(StructuredOutputs(choice=(word,)), share)
        except (BusyError, EngineError) as error:
            ends.append(f"{type(error).__name__}: {error}")
        else:
            ends.append("compiles")

    thread = threading.Thread(target=ask)
    thread.start()
    while len(link._waiting) == before and not ends:
        time.sleep(0.001)
    return thread, ends


def test_a_constraint_that_finds_no_time_ends_nobody_elses(
    scripted: FormChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Future[str]] = []
    both_wait = threading.Event()

    class Answer(Future[str]):
        """The first one comes too late, once the second one is asked for."""

        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def result(self, timeout: float | None = None) -> str:
            if self is made[0]:
                both_wait.wait()
                raise TimeoutError
            return super().result(timeout)

    monkeypatch.setattr(form_checker, "Future", Answer)
    link = scripted._running()
    slow, its_ends = asked(scripted, "never", "a")
    other, ends = asked(scripted, "later", "b")
    both_wait.set()
    slow.join()
    other.join()
    assert "BusyError: structured_outputs.choice was not compiled within" in its_ends[0]
    assert ends == ["compiles"]
    assert scripted._link is link, "the same process goes on"
    assert not link._waiting


def test_who_waits_is_asked_again_when_the_process_dies(scripted: FormChecker) -> None:
    scripted.check(StructuredOutputs(choice=("first",)))
    waiting, ends = asked(scripted, "alone", "a")
    culprit, its_ends = asked(scripted, "fatal", "b")
    waiting.join()
    culprit.join()
    assert ends == ["compiles"]
    assert its_ends[0].startswith("EngineError: structured_outputs.choice could not be checked")
    scripted.check(StructuredOutputs(choice=("others go on",)))


def test_what_was_compiled_when_the_process_died_is_asked_again(checker: FormChecker) -> None:
    process = psutil.Process(checker._running()._child.pid)
    gone, ends = Future[None](), list[Exception]()

    def expensive() -> None:
        try:
            checker.check(StructuredOutputs(regex=OPTIONAL + "asked twice"), abandoned=gone)
        except (EngineError, RequestError, NobodyWaitsError) as error:
            ends.append(error)

    thread = threading.Thread(target=expensive)
    thread.start()
    while len(process.children(recursive=True)) < 2:
        time.sleep(0.001)
    for killed in (process, *process.children(recursive=True)):
        killed.kill()
    gone.set_result(None)  # so that the second time need not be waited for
    thread.join()
    assert isinstance(ends[0], NobodyWaitsError), "no error of the engine's"


def test_a_process_that_ended_is_replaced(tokenizer: Tokenizer) -> None:
    checker = FormChecker(tokenizer)
    checker.prepare()
    for number in range(3):
        checker.check(StructuredOutputs(choice=(f"again {number}",)))
        assert checker._link is not None
        process = psutil.Process(checker._link._child.pid)
        process.kill()
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    checker.close()
    checker.close()


def test_nobody_is_left_when_the_checker_is_gone(tokenizer: Tokenizer) -> None:
    checker = FormChecker(tokenizer)
    checker.check(StructuredOutputs(choice=("a",)))
    assert checker._link is not None
    process = psutil.Process(checker._link._child.pid)
    del checker
    deadline = time.monotonic() + 60
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
