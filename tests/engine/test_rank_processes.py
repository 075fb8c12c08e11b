"""A model that several processes compute: the bits of one, through preemption and death."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from loire import LLM, SamplingParams
from loire.base.config import EngineOptions
from loire.base.errors import ConfigError, EngineError
from loire.base.machine import usable_cores
from loire.base.outputs import RequestOutput
from loire.checkpoint.open import open_checkpoint
from loire.engine.supervised import SupervisedEngine
from loire.kernels.native.backend import NativeBackend
from loire.quantize.calibration import read_text
from loire.quantize.run import quantize
from loire.text.tokenizer import checkpoint_tokenizer
from support.adapter_files import LINEAR, adapter_tensors, save_adapter
from support.tiny_models import VOCAB_SIZE, save_tokenizer

usable, why = NativeBackend.available()
pytestmark = pytest.mark.skipif(not usable, reason=why)

OPTIONS: dict[str, Any] = {
    "dtype": "bfloat16",
    "kernels": "native",
    "num_threads": 1,
    # Ten requests want about 50 blocks of 16 tokens; there are 24.
    "kv_cache_memory_bytes": 24 * 16 * 256,
    "max_model_len": 160,
    "max_num_batched_tokens": 48,
    "pipeline_depth": 2,
}
SHARED = [5 + i % 50 for i in range(40)]
PROMPTS = [[*SHARED, 60 + i] for i in range(6)] + [[7 + i] * (3 * i + 1) for i in range(4)]


def params() -> list[SamplingParams]:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "logprobs": 2},
        {"temperature": 0.9, "seed": 3, "prompt_logprobs": 1, "logprobs": 0},
        {"temperature": 0.0, "repetition_penalty": 1.3, "n": 2},
    ]
    each = [{**kinds[i % 3], "max_tokens": 20 + i} for i in range(len(PROMPTS))]
    return [SamplingParams(ignore_eos=True, **values) for values in each]


def told(outputs: list[RequestOutput]) -> list[Any]:
    """All that a request gave."""
    return [(o.prompt_logprobs, [(c.token_ids, c.logprobs) for c in o.outputs]) for o in outputs]


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> list[Any]:
    """Of one process that takes its sums in chunks: each request alone, with room and no cache."""
    options = {**OPTIONS, "kv_cache_memory_bytes": 8_000_000, "enable_prefix_caching": False}
    with LLM(str(tiny_llama), sum_chunks=8, **options) as llm:
        assert "sums of 8 chunks" in llm.config.computed_by
        pairs = zip(PROMPTS, params(), strict=True)
        return told([llm.generate([prompt], own)[0] for prompt, own in pairs])


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LLM]:
    with LLM(str(tiny_llama), tensor_parallel_size=2, **OPTIONS) as llm:
        yield llm


def test_two_processes_give_the_bits_of_one(llm: LLM, expected: list[Any]) -> None:
    assert llm.config.num_blocks == 24
    assert told(llm.generate(PROMPTS, params())) == expected
    assert sum(record.num_preemptions for record in llm.records) > 0
    again = llm.generate(PROMPTS[:1], params()[:1])
    assert again[0].num_cached_tokens > 0
    assert told(again) == expected[:1]


def test_adapters_are_shared(llm: LLM, tiny_llama: Path, tmp_path: Path) -> None:
    """Beside requests without one, of all products: rows, columns, and the head's rows."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    modules = (*LINEAR, "lm_head")
    adapter = save_adapter(tmp_path, adapter_tensors(model, 3, modules), 3)
    own = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0, logprobs=1)
    given: dict[str, Any] = {"sampling_params": own, "lora_request": ["mine", None, "mine"]}
    with LLM(str(tiny_llama), sum_chunks=8, **OPTIONS) as one:
        one.load_adapter("mine", adapter)
        wanted = told(one.generate(PROMPTS[4:7], **given))
    llm.load_adapter("mine", adapter)
    assert told(llm.generate(PROMPTS[4:7], **given)) == wanted
    assert told(llm.generate(PROMPTS[4:7], own)) != wanted


def test_a_lost_process_ends_the_engine(llm: LLM) -> None:
    """Runs last of those that have it. A step fails, and all after it; nobody waits for ever."""
    [follower] = followers(os.getpid())
    outputs = llm.stream("Tell me", SamplingParams(max_tokens=100, ignore_eos=True))
    next(outputs)
    follower.kill()
    with pytest.raises(EngineError, match=r"rank 1 of 2 .* is gone: killed by signal 9"):
        list(outputs)
    with pytest.raises(EngineError, match="is gone"):
        llm.generate(PROMPTS[:1], params()[:1])


def followers(pid: int) -> list[psutil.Process]:
    """The ranks' processes of one that is rank 0."""
    children = psutil.Process(pid).children()
    return [child for child in children if "loire.engine.rank_worker" in child.cmdline()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "mixture", "kept"])
def test_four_processes_give_the_bits_of_one(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """kept: in the formats that `loire quantize` chooses for five bits."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "bos_token_id": 0,
    }
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    if kind == "mixture":
        experts = {"num_local_experts": 8, "num_experts_per_tok": 2}
        model = MixtralForCausalLM(MixtralConfig(**sizes, **experts))
    model.save_pretrained(tmp_path / "plain")
    save_tokenizer(tmp_path / "plain")
    path = tmp_path / "plain"
    if kind == "kept":
        checkpoint, path = open_checkpoint(path), tmp_path / "kept"
        text = read_text(None)[:600]
        tokenizer = checkpoint_tokenizer(checkpoint)
        report = quantize(checkpoint, tokenizer, text, path, 5.0, kept=tmp_path / "costs")
        assert report.formats
    options = OPTIONS | {"kv_cache_memory_bytes": 8_000_000, "max_num_batched_tokens": 32}
    with LLM(str(path), sum_chunks=8, **options) as one:
        wanted = told(one.generate(PROMPTS[:5], params()[:5]))
    before = len(followers(os.getpid()))
    with LLM(str(path), tensor_parallel_size=4, **options) as four:
        assert len(followers(os.getpid())) == before + 3
        assert told(four.generate(PROMPTS[:5], params()[:5])) == wanted
        [alone] = four.generate(PROMPTS[4:5], params()[4:5])
        assert told([alone]) == wanted[4:]
    warned = "4 processes compute together on" in caplog.text
    assert warned == (usable_cores() < 4)


def test_a_model_that_cannot_be_shared_starts_nothing(tiny_llama: Path) -> None:
    before = len(followers(os.getpid()))
    with pytest.raises(ConfigError, match="2 KV heads are no multiple of 4; 1 and 2 work"):
        LLM(str(tiny_llama), tensor_parallel_size=4, **OPTIONS)
    assert len(followers(os.getpid())) == before


def test_a_killed_rank_is_replaced_with_its_engine(tiny_llama: Path) -> None:
    own = SamplingParams(max_tokens=100, temperature=0.8, seed=1, ignore_eos=True)
    with LLM(str(tiny_llama), sum_chunks=8, **OPTIONS) as one:
        [whole] = one.generate("Tell me more", own)

    async def test() -> None:
        options = EngineOptions(tensor_parallel_size=2, **OPTIONS)
        engine = await SupervisedEngine.create(str(tiny_llama), options)
        try:
            submission = engine.frontend.prompt(engine.next_id(), "Tell me more", own)
            text, killed = "", False
            async for output in engine.stream(submission):
                text += output.outputs[0].text
                if len(text) > 10 and not killed:
                    assert engine.link.pid is not None
                    [follower] = followers(engine.link.pid)
                    os.kill(follower.pid, signal.SIGKILL)
                    killed = True
            assert text == whole.outputs[0].text
            assert engine.link.num_restarts == 1
            assert engine.link.pid is not None
            [last] = followers(engine.link.pid)
        finally:
            await engine.close()
        until = time.monotonic() + 60
        while last.is_running() and time.monotonic() < until:
            await asyncio.sleep(0.05)
        assert not last.is_running()

    asyncio.run(asyncio.wait_for(test(), 240))
