"""The engine in a process of its own: the same tokens, through deaths, hangs and poison."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loire import LLM, SamplingParams
from loire.base.config import EngineOptions
from loire.base.errors import EngineError, ModelError, RequestError, RequestTimeoutError
from loire.base.outputs import RequestOutput
from loire.engine import restarts, supervisor
from loire.engine.supervised import SupervisedEngine
from loire.engine.supervisor import NUM_RECORDS, SupervisorOptions
from loire.engine.wire import LoadModel, Submit, frame

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "num_threads": 1,
    "kv_cache_memory_bytes": 8_000_000,
    "max_num_batched_tokens": 256,
}
HARMFUL_WORKER = Path(__file__).parents[1] / "support" / "harmful_worker.py"
HARMFUL = SupervisorOptions(
    command=(sys.executable, str(HARMFUL_WORKER)), step_timeout_s=5.0, step_timeout_per_token_s=0.0
)
PROMPTS = [f"Tell me about the number {number}" for number in range(8)]
SAMPLED = SamplingParams(
    max_tokens=300, temperature=0.9, seed=5, ignore_eos=True, logprobs=1, logit_bias={40: 1.0}
)


def run(
    test: Callable[[], Coroutine[Any, Any, None]], loop: asyncio.AbstractEventLoop | None = None
) -> None:
    """Run an async test, with a limit on its time. loop: the one that its engine lives on."""

    async def limited() -> None:
        await asyncio.wait_for(test(), 240)

    (loop.run_until_complete if loop else asyncio.run)(limited())


@asynccontextmanager
async def engine(model: Path, **arguments: Any) -> AsyncGenerator[SupervisedEngine, None]:
    started = await SupervisedEngine.create(str(model), EngineOptions(**OPTIONS), **arguments)
    try:
        yield started
    finally:
        await started.close()


@pytest.fixture(scope="module")
def framed() -> Iterator[list[object]]:
    """All messages that were encoded for engines, in their order."""
    found: list[object] = []

    def count(message: Any) -> bytes:
        found.append(message)
        return frame(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "frame", count)
        yield found


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def shared(
    tiny_llama: Path, framed: list[object], loop: asyncio.AbstractEventLoop
) -> Iterator[SupervisedEngine]:
    """An engine on `loop` for tests that do it no harm: they would spend their time on starts."""
    options = EngineOptions(**OPTIONS)
    started = loop.run_until_complete(SupervisedEngine.create(str(tiny_llama), options))
    assert [type(message) for message in framed] == [LoadModel]
    yield started
    loop.run_until_complete(started.close())


class Reader:
    """Reads a stream to its end."""

    def __init__(self, engine: SupervisedEngine, prompt: str, params: SamplingParams) -> None:
        submission = engine.frontend.prompt(engine.next_id(), prompt, params)
        self.texts = [""] * params.n
        self.token_ids: list[list[int]] = [[] for _ in range(params.n)]
        self.num_logprobs = [0] * params.n
        self.finish_reasons: list[str | None] = [None] * params.n
        self.last: RequestOutput | None = None
        self.begun = asyncio.Event()
        self.task = asyncio.create_task(self._read(engine.stream(submission)))

    async def _read(self, outputs: AsyncGenerator[RequestOutput, None]) -> None:
        async with aclosing(outputs):
            async for output in outputs:
                self.last = output
                for delta in output.outputs:
                    self.texts[delta.index] += delta.text
                    self.token_ids[delta.index] += delta.token_ids
                    self.num_logprobs[delta.index] += len(delta.logprobs or ())
                    self.finish_reasons[delta.index] = delta.finish_reason
                    if delta.error is not None:
                        raise EngineError(delta.error)
                if len(self.token_ids[0]) > 3:
                    self.begun.set()


def is_running(pid: int) -> bool:
    """Whether a process is there and is more than the record of its end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def kill(engine: SupervisedEngine) -> None:
    assert engine.link.pid is not None
    os.kill(engine.link.pid, signal.SIGKILL)


def test_a_killed_engine_goes_on_with_the_same_text(tiny_llama: Path) -> None:
    parameters = [
        SAMPLED,
        SamplingParams(max_tokens=300, temperature=0, ignore_eos=True, prompt_logprobs=1),
        SamplingParams(max_tokens=200, temperature=0.8, seed=3, n=3, stop=["e"]),
    ]
    with LLM(str(tiny_llama), **OPTIONS) as llm:
        expected = [
            llm.generate(prompt, params)[0] for prompt in PROMPTS[:4] for params in parameters
        ]

    async def test() -> None:
        async with engine(tiny_llama) as supervised:
            readers = [Reader(supervised, p, params) for p in PROMPTS[:4] for params in parameters]
            for _ in range(2):
                begun = asyncio.create_task(readers[0].begun.wait())
                await asyncio.wait({begun, readers[0].task}, return_when="FIRST_COMPLETED")
                begun.cancel()
                kill(supervised)
                while supervised.link.is_ready:
                    await asyncio.sleep(0.01)
                # What the dead one had sent may be read yet: the next to be killed is the new one.
                readers[0].begun.clear()
                while not supervised.link.is_ready:
                    await asyncio.sleep(0.01)
            await asyncio.gather(*(reader.task for reader in readers))
            assert supervised.link.num_restarts == 2
            for reader, whole in zip(readers, expected, strict=True):
                assert reader.texts == [output.text for output in whole.outputs]
                assert reader.token_ids == [list(output.token_ids) for output in whole.outputs]
                assert reader.finish_reasons == [o.finish_reason for o in whole.outputs]
                assert reader.last is not None
                assert reader.last.num_cached_tokens <= len(whole.prompt_token_ids)
                if whole.prompt_logprobs is not None:
                    assert reader.last.prompt_logprobs is not None
                    assert len(reader.last.prompt_logprobs) == len(whole.prompt_token_ids)
                else:
                    logprobs = [len(output.logprobs or ()) for output in whole.outputs]
                    assert reader.num_logprobs == logprobs
            await settled(supervised)

    run(test)


async def settled(supervised: SupervisedEngine) -> None:
    """Nothing is left anywhere."""
    for _ in range(200):
        if supervised.link.num_requests == 0 == supervised.link.blocks_in_use:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{supervised.link.num_requests} requests are left")


def test_leaving_a_stream_frees_its_blocks(
    shared: SupervisedEngine, loop: asyncio.AbstractEventLoop
) -> None:
    async def test() -> None:
        readers = [Reader(shared, prompt, SAMPLED) for prompt in PROMPTS]
        await readers[0].begun.wait()
        assert shared.link.blocks_in_use > 0
        assert len(shared.link.records) > 3
        for reader in readers:
            reader.task.cancel()
        await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)
        await settled(shared)

    run(test, loop)


def test_old_steps_are_forgotten(shared: SupervisedEngine, loop: asyncio.AbstractEventLoop) -> None:
    async def test() -> None:
        for _ in range(2):
            await Reader(shared, PROMPTS[0], SAMPLED).task
        assert len(shared.link.records) == NUM_RECORDS < 2 * 300
        step_ids = [record.step_id for record in shared.link.records]
        assert step_ids == list(range(step_ids[0], step_ids[0] + NUM_RECORDS))
        assert shared.link.records[-1].slots[0].ended

    run(test, loop)


def test_a_request_that_kills_the_engine_twice_is_failed_alone(tiny_llama: Path) -> None:
    async def test() -> None:
        async with engine(tiny_llama, supervision=HARMFUL) as supervised:
            bystanders = [Reader(supervised, prompt, SAMPLED) for prompt in PROMPTS]
            for bystander in bystanders:
                await bystander.begun.wait()
            poison = Reader(supervised, "a \x01 kills", SAMPLED)
            with pytest.raises(EngineError, match=r"died 2 times.*request-8"):
                await poison.task
            await asyncio.gather(*(reader.task for reader in bystanders))
            assert supervised.link.num_restarts == 2
            assert {len(reader.token_ids[0]) for reader in bystanders} == {300}
            await settled(supervised)

    run(test)


def test_an_engine_that_hangs_is_replaced(tiny_llama: Path) -> None:
    impatient = replace(HARMFUL, step_timeout_s=3.0)

    async def test() -> None:
        async with engine(tiny_llama, supervision=impatient) as supervised:
            bystander = Reader(supervised, PROMPTS[0], SAMPLED)
            hanging = Reader(supervised, "a \x02 hangs", SAMPLED)
            with pytest.raises(EngineError, match="died 2 times"):
                await hanging.task
            await bystander.task
            assert len(bystander.token_ids[0]) == 300

    run(test)


def test_an_exception_in_a_step_fails_its_request_alone(tiny_llama: Path) -> None:
    async def test() -> None:
        async with engine(tiny_llama, supervision=HARMFUL) as supervised:
            pid = supervised.link.pid
            first = Reader(supervised, "a \x03 raises before there is any step", SAMPLED)
            with pytest.raises(EngineError, match="computing it failed"):
                await first.task
            bystander = Reader(supervised, PROMPTS[1], SAMPLED)
            await bystander.begun.wait()
            raising = Reader(supervised, "a \x03 raises", SAMPLED)
            with pytest.raises(EngineError, match=r"computing it failed.*for the test"):
                await raising.task
            await bystander.task
            assert len(bystander.token_ids[0]) == 300
            assert supervised.link.pid == pid

    run(test)


def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(ModelError, match=r"config\.json"):
            async with engine(tmp_path):
                pass

    run(test)


def test_options_that_cannot_work_are_told(tiny_llama: Path) -> None:
    async def test() -> None:
        with pytest.raises(ValueError, match="max_model_len is 100000"):
            await SupervisedEngine.create(str(tiny_llama), EngineOptions(max_model_len=100_000))

    run(test)


def test_a_process_that_cannot_start_is_given_up_with_its_last_lines(tiny_llama: Path) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('no engine in here')")

    async def test() -> None:
        with pytest.raises(EngineError, match=r"3 times(.|\n)*no engine in here"):
            async with engine(tiny_llama, supervision=SupervisorOptions(command=command)):
                pass

    run(test)


def test_an_engine_that_dies_whenever_it_is_ready_is_given_up(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "MAX_SHORT_LIVES", 2)
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.01)
    command = (sys.executable, str(HARMFUL_WORKER.with_name("short_lived_worker.py")))

    async def test() -> None:
        ended = asyncio.get_running_loop().create_future()
        supervision = SupervisorOptions(command=command)
        arguments = {"supervision": supervision, "on_failure": ended.set_result}
        async with engine(tiny_llama, **arguments) as supervised:
            assert "2 times within its first 32 steps" in str(await ended)
            assert "no life for me" in str(await ended)
            assert not supervised.link.alive

    run(test)


def test_a_request_is_encoded_once(
    shared: SupervisedEngine, framed: list[object], loop: asyncio.AbstractEventLoop
) -> None:
    before = len(framed)

    async def test() -> None:
        await Reader(shared, PROMPTS[0], SAMPLED).task

    run(test, loop)
    assert [type(message) for message in framed[before:]] == [Submit]


def test_time_of_a_request_is_limited(tiny_llama: Path) -> None:
    async def test() -> None:
        async with engine(tiny_llama, supervision=HARMFUL, request_timeout_s=0.5) as supervised:
            reader = Reader(supervised, "a \x04 is slow", SAMPLED)
            with pytest.raises(RequestTimeoutError, match=r"within 0\.5 s"):
                await reader.task
            await settled(supervised)

    run(test)


def test_what_cannot_cross_is_refused(
    shared: SupervisedEngine, loop: asyncio.AbstractEventLoop
) -> None:
    async def test() -> None:
        submission = shared.frontend.prompt("r", "x", SAMPLED)
        request = replace(submission.request, cache_salt="\ud800")
        submission = replace(submission, request=request)
        with pytest.raises(RequestError, match="surrogate"):
            await anext(shared.stream(submission))
        assert shared.link.num_requests == 0

    run(test, loop)


def test_the_engine_ends_with_its_supervisor(tiny_llama: Path) -> None:
    """The supervisor is killed in the middle of a stream: its engine does not stay behind."""
    program = f"""
import asyncio, os, signal
from loire import SamplingParams
from loire.base.config import EngineOptions
from loire.engine import restarts, supervisor
from loire.engine.supervised import SupervisedEngine

async def main():
    engine = await SupervisedEngine.create({str(tiny_llama)!r}, EngineOptions(**{OPTIONS!r}))
    params = SamplingParams(max_tokens=400, ignore_eos=True)
    stream = engine.stream(engine.frontend.prompt("r", "x", params))
    await anext(stream)
    print(engine.link.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""

    async def test() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        pid = int(output)
        for _ in range(1000):
            if not is_running(pid):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"process {pid} is still there")

    run(test)
