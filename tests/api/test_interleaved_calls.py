"""One LLM, called in any order: interrupted, after a failed step, interleaved, from threads."""

import gc
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loire import LLM, SamplingParams
from loire.base.errors import EngineError
from loire.base.executor import PendingStep
from loire.base.outputs import RequestOutput
from loire.base.step import StepPlan
from loire.engine.ledger import RequestLedger

PROMPTS = [list(range(first, first + 20)) for first in range(3, 60, 7)]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


class Harm:
    """An executor that does something before its nth step."""

    def __init__(self, inner: Any, nth: int, harm: Any) -> None:
        self.inner = inner
        self.nth = nth
        self.harm = harm

    def launch(self, plan: StepPlan) -> PendingStep:
        self.nth -= 1
        if self.nth == 0:
            self.harm()
        pending: PendingStep = self.inner.launch(plan)
        return pending


class Fails:
    """A step that fails at its nth call."""

    def __init__(self, step: Any, nth: int, fail: Any) -> None:
        self.step = step
        self.nth = nth
        self.fail = fail

    def __call__(self) -> Any:
        self.nth -= 1
        if self.nth == 0:
            self.fail()
        return self.step()


@pytest.fixture(params=[1, 2], ids=["depth1", "depth2"])
def llm(tiny_llama: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    options = {"dtype": "float32", "kv_cache_memory_bytes": 8_000_000, "num_threads": 1}
    with LLM(str(tiny_llama), pipeline_depth=request.param, **options) as llm:
        yield llm
        settle(llm)
        llm.engine.core.scheduler.allocator.check()


def settle(llm: LLM) -> None:
    """Wait until what was aborted has left the engine."""
    for _ in range(2000):
        if not llm.num_requests:
            return
        time.sleep(0.005)
    raise AssertionError(f"{llm.num_requests} requests are left")


def harm(llm: LLM, nth: int, what: Any) -> None:
    core = llm.engine.core
    core._executor = Harm(core._executor, nth, what)


def tokens(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in outputs]


def streamed(llm: LLM, prompt: list[int]) -> tuple[int, ...]:
    return sum((piece.outputs[0].token_ids for piece in llm.stream(prompt, GREEDY)), ())


def interrupt() -> None:
    """What Ctrl-C does, while the engine's thread is in a step."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)
    time.sleep(0.02)


def test_an_interrupted_call_leaves_the_next_one_alone(llm: LLM) -> None:
    expected = tokens(llm.generate(PROMPTS, GREEDY))
    for nth in (1, 2, 7):
        harm(llm, nth, interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS[::-1], replace(GREEDY, max_tokens=400))
        assert tokens(llm.generate(PROMPTS, GREEDY)) == expected


def test_an_interrupted_stream_can_be_followed_by_others(llm: LLM) -> None:
    expected = tokens(llm.generate(PROMPTS[:1], GREEDY))[0]
    harm(llm, 5, interrupt)
    stream = llm.stream(PROMPTS[1], replace(GREEDY, max_tokens=400))
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert streamed(llm, PROMPTS[0]) == expected


@pytest.mark.parametrize("error", [MemoryError("no room"), EngineError("no engine")])
@pytest.mark.parametrize("nth", [1, 4])
def test_a_failed_step_ends_its_calls_and_no_others(llm: LLM, error: Exception, nth: int) -> None:
    expected = tokens(llm.generate(PROMPTS, GREEDY))

    def fail() -> None:
        raise error

    core = llm.engine.core
    core.step, step = Fails(core.step, nth, fail), core.step  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=str(error)) as failed:
        llm.generate(PROMPTS[::-1], replace(GREEDY, max_tokens=400))
    assert failed.value.__cause__ is error
    core.step = step  # type: ignore[method-assign]
    assert tokens(llm.generate(PROMPTS, GREEDY)) == expected


def test_memory_that_is_short_in_a_step_ends_its_calls(llm: LLM) -> None:
    expected = tokens(llm.generate(PROMPTS, GREEDY))

    def fail() -> None:
        raise MemoryError("no room")

    harm(llm, 3, fail)
    with pytest.raises(EngineError, match="no room"):
        streamed(llm, PROMPTS[0])
    assert tokens(llm.generate(PROMPTS, GREEDY)) == expected


def test_a_step_that_fails_once_costs_nobody_anything(llm: LLM) -> None:
    expected = tokens(llm.generate(PROMPTS, GREEDY))

    def fail() -> None:
        raise ZeroDivisionError("for the test")

    harm(llm, 3, fail)
    assert tokens(llm.generate(PROMPTS, GREEDY)) == expected


def test_streams_of_one_llm_side_by_side(llm: LLM) -> None:
    expected = tokens(llm.generate(PROMPTS, GREEDY))
    got: list[tuple[int, ...]] = [()] * len(PROMPTS)
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS]
    for pieces in zip(*streams, strict=True):
        for index, piece in enumerate(pieces):
            got[index] += piece.outputs[0].token_ids
    assert got == expected


def test_generate_inside_a_stream(llm: LLM) -> None:
    first, second = tokens(llm.generate(PROMPTS[:2], GREEDY))
    got: tuple[int, ...] = ()
    for number, piece in enumerate(llm.stream(PROMPTS[0], GREEDY)):
        got += piece.outputs[0].token_ids
        if number % 10 == 0:
            assert tokens(llm.generate(PROMPTS[1], GREEDY)) == [second]
    assert got == first


def test_threads_share_an_llm(llm: LLM) -> None:
    expected = tokens(llm.generate(PROMPTS, GREEDY))
    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(streamed, llm, prompt) for prompt in PROMPTS]
        calls = [pool.submit(llm.generate, PROMPTS[n:], GREEDY) for n in range(4)]
        assert [future.result() for future in streams] == expected
        for n, future in enumerate(calls):
            assert tokens(future.result()) == expected[n:]


def test_closing_ends_the_calls_of_other_threads(tiny_llama: Path) -> None:
    llm = LLM(str(tiny_llama), dtype="float32", kv_cache_memory_bytes=8_000_000, num_threads=1)
    started = threading.Event()

    def read() -> None:
        for _ in llm.stream(PROMPTS[0], replace(GREEDY, max_tokens=None)):
            started.set()

    in_a_step, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        in_a_step.set()
        assert goes_on.wait(60)

    harm(llm, 9, hold)
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read)
        assert started.wait(60)
        assert in_a_step.wait(60)
        closing = pool.submit(llm.close)
        while llm.alive:
            time.sleep(0.001)
        goes_on.set()
        closing.result(60)
        with pytest.raises(EngineError, match="closed"):
            reading.result()


def test_a_deleted_llm_lets_its_stream_end(tiny_llama: Path) -> None:
    llm = LLM(str(tiny_llama), dtype="float32", kv_cache_memory_bytes=8_000_000, num_threads=1)
    expected = tokens(llm.generate(PROMPTS[0], GREEDY))
    stream = llm.stream(PROMPTS[0], GREEDY)
    got = next(stream).outputs[0].token_ids
    del llm
    gc.collect()
    for piece in stream:
        got += piece.outputs[0].token_ids
    assert [got] == expected


def test_many_prompts_are_not_looked_through_at_each_step(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    finished = RequestLedger.finished.fget  # type: ignore[attr-defined]

    def count(ledger: RequestLedger) -> bool:
        nonlocal looks
        looks += 1
        return bool(finished(ledger))

    monkeypatch.setattr(RequestLedger, "finished", property(count))
    with LLM(str(tiny_llama), max_num_seqs=4, kv_cache_memory_bytes=8_000_000) as llm:
        outputs = llm.generate([[5, 6, 7]] * 300, replace(GREEDY, max_tokens=4))
    num_updates = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert num_updates == 1200
    assert looks <= 2 * num_updates
