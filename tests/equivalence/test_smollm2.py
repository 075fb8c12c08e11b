"""The default model against transformers, on real text, token for token in float32."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch

from loire import LLM, SamplingParams

QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain photosynthesis to a child.",
    "List three uses of copper.",
    "Translate 'good morning' into Spanish.",
    "def fibonacci(n): complete this Python function.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What is 12 times 12? Think step by step.",
    "Résume en une phrase : « Le chat dort sur le canapé. » 🐈",
)
NUM_TOKENS = 64


@pytest.fixture(autouse=True, scope="module")
def read_once() -> Iterator[None]:
    """transformers reads the file three times, and makes the map of names for each module anew."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        yield


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM(str(smollm2), dtype="float32", kv_cache_memory_bytes=200_000_000,
             max_model_len=1024) as llm:  # fmt: skip
        yield llm


@pytest.fixture(scope="module")
def prompts(llm: LLM) -> list[tuple[int, ...]]:
    params = SamplingParams()
    return [
        llm.frontend.rendered(
            str(i), llm.frontend.render([{"role": "user", "content": question}]), params
        )
        .request.prompt_token_ids
        for i, question in enumerate(QUESTIONS)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> torch.nn.Module:
    """The same file in transformers."""
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        smollm2.parent,
        gguf_file=smollm2.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()


def test_ten_prompts_token_for_token(
    llm: LLM, prompts: list[tuple[int, ...]], reference: torch.nn.Module
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = output.outputs[0].token_ids
        # If behind each of these tokens the next one is the likeliest, generating greedily gives
        # the same ones; and one pass over all of them takes a tenth of the time.
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + tokens])).logits[0]
        assert tuple(logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()) == tokens
        assert len(tokens) == NUM_TOKENS


def test_the_tokenizer_agrees(smollm2: Path, llm: LLM) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    texts = [
        *QUESTIONS,
        "  spaces   and\ttabs\n\n",
        "1234567890 3.14",
        "日本語 العربية <|im_start|>",
    ]
    for text in texts:
        assert llm.frontend.tokenizer.encode(text) == reference(text)["input_ids"], text


def test_the_answer_is_right(smollm2: Path) -> None:
    with LLM(str(smollm2), kv_cache_memory_bytes=100_000_000, max_model_len=512) as llm:
        question = "What is the capital of Japan?"  # France's is a near-tie (docs/log.md)
        [output] = llm.chat(
            [{"role": "user", "content": question}], SamplingParams(temperature=0.0)
        )
    assert "Tokyo" in output.outputs[0].text
    assert output.outputs[0].finish_reason == "stop"
