"""LLM and AsyncLLM on a tiny model: ends of requests, errors, streaming, aborts."""

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loire import LLM, AsyncLLM, SamplingParams
from loire.base.errors import (
    CapacityError,
    ConfigError,
    EngineError,
    PromptTooLongError,
    RequestError,
)
from loire.base.messages import SequenceUpdate

PROMPT = list(range(3, 40))
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


def _options(**more: Any) -> dict[str, Any]:
    return {"dtype": "float32", "kv_cache_memory_bytes": 2_000_000, **more}


@pytest.fixture
def llm(tiny_llama: Path) -> Iterator[LLM]:
    with LLM(str(tiny_llama), **_options()) as llm:
        yield llm
        settle(llm)
        allocator = llm.engine.core.scheduler.allocator
        assert allocator.counts.in_use == 0
        allocator.check()


def settle(llm: LLM) -> None:
    """Wait until what was aborted has left the engine, at the end of its step."""
    for _ in range(2000):
        if not llm.num_requests:
            return
        time.sleep(0.005)
    raise AssertionError(f"{llm.num_requests} requests are left")


def test_streamed_pieces_are_the_whole(llm: LLM) -> None:
    [whole] = llm.generate(PROMPT, GREEDY)
    pieces = list(llm.stream(PROMPT, GREEDY))
    assert "".join(piece.outputs[0].text for piece in pieces) == whole.outputs[0].text
    tokens = tuple(token for piece in pieces for token in piece.outputs[0].token_ids)
    assert tokens == whole.outputs[0].token_ids
    assert [piece.finished for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert whole.outputs[0].finish_reason == "length"


def test_stop_string_ends_and_is_left_out(llm: LLM) -> None:
    [whole] = llm.generate(PROMPT, GREEDY)
    text = whole.outputs[0].text
    stop = text[5:8]
    [cut] = llm.generate(PROMPT, replace(GREEDY, stop=(stop,)))
    assert cut.outputs[0].text == text[: text.index(stop)]
    assert cut.outputs[0].finish_reason == "stop"
    assert cut.outputs[0].stop_reason == stop
    assert len(cut.outputs[0].token_ids) < len(whole.outputs[0].token_ids)


def test_stop_token_counts_but_does_not_show(llm: LLM) -> None:
    [whole] = llm.generate(PROMPT, GREEDY)
    stop = whole.outputs[0].token_ids[6]
    first = whole.outputs[0].token_ids.index(stop)
    [cut] = llm.generate(PROMPT, replace(GREEDY, stop_token_ids=(stop,)))
    assert cut.outputs[0].token_ids == whole.outputs[0].token_ids[: first + 1]
    assert cut.outputs[0].stop_reason == stop
    tokenizer = llm.frontend.tokenizer
    assert cut.outputs[0].text == tokenizer.decode(cut.outputs[0].token_ids[:-1])


def test_window_ends_a_request(tiny_llama: Path) -> None:
    with LLM(str(tiny_llama), **_options(max_model_len=48)) as llm:
        [output] = llm.generate(PROMPT, replace(GREEDY, max_tokens=None))
    assert output.outputs[0].finish_reason == "length"
    assert len(output.outputs[0].token_ids) == 48 - len(PROMPT)


def test_leaving_a_stream_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream(PROMPT, replace(GREEDY, max_tokens=200))
    next(stream)
    assert llm.num_requests == 1
    stream.close()  # type: ignore[attr-defined]
    settle(llm)


def test_refusals_have_the_numbers_and_lose_nothing(llm: LLM) -> None:
    with pytest.raises(PromptTooLongError, match=r"600 tokens.*512"):
        llm.generate([PROMPT, [5] * 600], GREEDY)
    with pytest.raises(PromptTooLongError, match=r"37 tokens.*500 more, 537.*512"):
        llm.generate(PROMPT, replace(GREEDY, max_tokens=500))
    with pytest.raises(RequestError, match=r"token id 259.*0 to 258"):
        llm.generate([[3, 259]], GREEDY)
    with pytest.raises(RequestError, match="empty"):
        llm.generate([""], GREEDY)
    with pytest.raises(RequestError, match="2 prompts, but 1"):
        llm.generate([PROMPT, PROMPT], [GREEDY])
    assert not llm.engine.core.scheduler.has_unfinished


def test_start_fails_with_the_numbers(tiny_llama: Path) -> None:
    with pytest.raises(CapacityError, match=r"512 tokens needs 32 KV blocks.*has 3"):
        LLM(str(tiny_llama), **_options(kv_cache_memory_bytes=3 * 16 * 512))
    with pytest.raises(ConfigError, match=r"1024.*512"):
        LLM(str(tiny_llama), **_options(max_model_len=1024))
    with pytest.raises(ConfigError, match="no kernels 'fast'"):
        LLM(str(tiny_llama), **_options(kernels="fast"))


def test_memory_is_freed(tiny_llama: Path) -> None:
    llm = LLM(str(tiny_llama), **_options())
    llm.generate(PROMPT, GREEDY)
    cache = weakref.ref(llm.engine.core._executor.cache)  # type: ignore[attr-defined]
    assert cache() is not None
    del llm
    gc.collect()
    assert cache() is None


def test_closed(tiny_llama: Path) -> None:
    llm = LLM(str(tiny_llama), **_options())
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate(PROMPT, GREEDY)


def test_prompt_logprobs_do_not_read_the_cache(llm: LLM) -> None:
    [first] = llm.generate(PROMPT, replace(GREEDY, prompt_logprobs=2, logprobs=2))
    [again] = llm.generate(PROMPT, replace(GREEDY, prompt_logprobs=2, logprobs=2))
    assert again.num_cached_tokens == 0
    assert again.prompt_logprobs == first.prompt_logprobs
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert len(first.prompt_logprobs) == len(PROMPT)
    for token, entry in zip(PROMPT[1:], first.prompt_logprobs[1:], strict=True):
        assert entry is not None
        assert next(iter(entry)) == token
    [plain] = llm.generate(PROMPT, GREEDY)
    assert plain.num_cached_tokens == 32


def test_a_row_that_is_not_finite_ends_its_request_alone(llm: LLM) -> None:
    """A poisoned embedding: whoever uses that token fails, its neighbours never notice."""
    poison = 77
    decoder = llm.engine.core._executor.decoder  # type: ignore[attr-defined]
    healthy = [[token for token in PROMPT if token != poison], list(range(100, 160))]
    expected = [output.outputs[0].token_ids for output in llm.generate(healthy, GREEDY)]
    with torch.inference_mode():
        decoder.embedding[poison] = float("nan")
    prompts = [healthy[0], [*range(40, 75), poison, *range(80, 90)], healthy[1]]
    params = [GREEDY, replace(GREEDY, n=2), GREEDY]
    before, failed, after = llm.generate(prompts, params)
    assert [choice.finish_reason for choice in failed.outputs] == ["error", "error"]
    assert failed.outputs[0].error is not None
    assert [before.outputs[0].token_ids, after.outputs[0].token_ids] == expected
    # Nothing of the failed prompt can be found in the cache.
    [again] = llm.generate([prompts[1]], GREEDY)
    assert again.num_cached_tokens == 0
    # Blocks that held NaN are used again without harm.
    llm.engine.core.scheduler.allocator.pool.clear_cache()  # type: ignore[attr-defined]
    refreshed = llm.generate([healthy[0], healthy[1]] * 6, GREEDY)
    assert [output.outputs[0].token_ids for output in refreshed] == expected * 6


@pytest.fixture
def async_llm(tiny_llama: Path) -> AsyncLLM:
    return AsyncLLM(str(tiny_llama), **_options())


async def _collect(llm: AsyncLLM, prompt: list[int], params: SamplingParams) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    async for output in llm.generate(prompt, params):
        tokens += output.outputs[0].token_ids
    return tokens


def test_async_is_sync(tiny_llama: Path, async_llm: AsyncLLM) -> None:
    prompts = [PROMPT[i:] for i in range(12)]
    with LLM(str(tiny_llama), **_options()) as llm:
        expected = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]

    async def main() -> list[tuple[int, ...]]:
        result = await asyncio.gather(*(_collect(async_llm, p, GREEDY) for p in prompts))
        await async_llm.close()
        return result

    assert asyncio.run(main()) == expected


def test_async_cancel_frees_and_neighbours_go_on(async_llm: AsyncLLM) -> None:
    long = replace(GREEDY, max_tokens=400)

    async def main() -> None:
        alone = await _collect(async_llm, PROMPT, GREEDY)
        victims = [asyncio.create_task(_collect(async_llm, PROMPT[1:], long)) for _ in range(5)]
        await asyncio.sleep(0.05)
        neighbour = asyncio.create_task(_collect(async_llm, PROMPT, GREEDY))
        for victim in victims:
            victim.cancel()
        assert await neighbour == alone
        scheduler = async_llm.engine.core.scheduler
        for _ in range(200):
            if not scheduler.has_unfinished:
                break
            await asyncio.sleep(0.01)
        assert not scheduler.has_unfinished
        assert scheduler.allocator.counts.in_use == 0
        await async_llm.close()

    asyncio.run(main())


def test_updates_of_ended_requests_are_dropped(llm: LLM) -> None:
    from loire.engine.ledger import RequestLedger

    submission = llm.frontend.prompt("r", PROMPT, replace(GREEDY, stop=("x",)))
    ledger = RequestLedger(submission, llm.frontend.tokenizer, keeps=True)
    x = llm.frontend.tokenizer.encode("x", False)[0]
    news = ledger.apply(SequenceUpdate("r", 0, token_ids=(x,)), 0.0)
    assert news is not None
    assert news[1], "the engine must be told"
    assert ledger.apply(SequenceUpdate("r", 0, token_ids=(x,)), 0.0) is None
    assert ledger.so_far().outputs[0].token_ids == (x,)


def test_the_ledger_of_a_stream_holds_no_tokens(llm: LLM) -> None:
    """Its reader has them: they are not kept twice."""
    from loire.engine.ledger import RequestLedger

    params = replace(GREEDY, logprobs=2, max_tokens=30)
    submission = llm.frontend.prompt(llm._client.next_id(), PROMPT, params)
    ledger = RequestLedger(submission, llm.frontend.tokenizer)
    outputs = list(llm._client.run([ledger]))
    [completion] = ledger.completions
    assert completion.num_tokens == 30 == sum(len(o.outputs[0].token_ids) for o in outputs)
    assert (completion.token_ids, completion.logprobs, completion.text) == ([], [], "")
    assert outputs[-1].timing.tpot_s is not None
