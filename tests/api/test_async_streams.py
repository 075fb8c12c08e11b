"""AsyncLLM: streams on asyncio loops that come and go, over one engine."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from loire import AsyncLLM, SamplingParams
from loire.base.errors import EngineError
from loire.base.outputs import RequestOutput

LONG = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)


@pytest.fixture
def llm(tiny_llama: Path) -> Iterator[AsyncLLM]:
    llm = AsyncLLM(str(tiny_llama), dtype="float32", kv_cache_memory_bytes=8_000_000, num_threads=1)
    yield llm
    asyncio.run(llm.close())


def stream(llm: AsyncLLM, params: SamplingParams) -> AsyncGenerator[RequestOutput, None]:
    return cast("AsyncGenerator[RequestOutput, None]", llm.generate("Hello", params))


async def num_tokens(llm: AsyncLLM, params: SamplingParams) -> int:
    async with aclosing(stream(llm, params)) as outputs:
        return sum([len(output.outputs[0].token_ids) async for output in outputs])


def test_every_update_arrives_once(llm: AsyncLLM) -> None:
    async def many() -> list[int]:
        return await asyncio.gather(*(num_tokens(llm, SHORT) for _ in range(40)))

    assert asyncio.run(many()) == [20] * 40
    assert llm.num_requests == 0


def test_leaving_a_stream_frees_its_blocks(llm: AsyncLLM) -> None:
    async def leave() -> None:
        async with aclosing(stream(llm, LONG)) as outputs:
            await anext(outputs)
            assert llm.num_requests == 1
        # The next request comes after the abort: the engine takes commands in order.
        await num_tokens(llm, SHORT)
        assert llm.num_requests == 0
        assert llm.engine.core.scheduler.allocator.counts.in_use == 0

    asyncio.run(leave())


def test_a_loop_that_was_closed_does_not_stop_the_engine(llm: AsyncLLM) -> None:
    loop = asyncio.new_event_loop()
    abandoned = stream(llm, LONG)
    loop.run_until_complete(anext(abandoned))
    loop.close()

    async def later() -> int:
        count = await num_tokens(llm, SHORT)
        await abandoned.aclose()
        return count

    assert asyncio.run(later()) == 20
    assert llm.alive


def test_streams_hear_of_a_step_that_failed(llm: AsyncLLM, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("for the test")

    async def main() -> None:
        async with aclosing(stream(llm, LONG)) as outputs:
            await anext(outputs)
            with monkeypatch.context() as context:
                context.setattr(llm.engine.core, "step", fail)
                with pytest.raises(EngineError, match="for the test"):
                    [output async for output in outputs]
                with pytest.raises(EngineError, match="for the test"):
                    await num_tokens(llm, SHORT)
        assert await num_tokens(llm, SHORT) == 20
        assert llm.alive

    asyncio.run(main())


def test_streams_hear_of_the_end(llm: AsyncLLM) -> None:
    async def main() -> None:
        async with aclosing(stream(llm, LONG)) as outputs:
            await anext(outputs)
            await llm.close()
            with pytest.raises(EngineError, match="closed"):
                [output async for output in outputs]
        with pytest.raises(EngineError, match="closed"):
            await num_tokens(llm, SHORT)

    asyncio.run(main())
    assert not llm.alive
