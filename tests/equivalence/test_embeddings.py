"""Pooled hidden states: transformers' in float32, in any company, chunks and memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loire import LLM, SamplingParams
from loire.base.errors import RequestError
from loire.base.sampling import Pooling

PROMPTS = [[5, 6, 7], list(range(10, 90)), [3], [8] * 33]


def _expected(model: Path, prompt: list[int], pooling: Pooling) -> torch.Tensor:
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        hidden = reference.model(torch.tensor([prompt])).last_hidden_state[0].double()
    vector = hidden.mean(dim=0) if pooling == "mean" else hidden[-1]
    return vector / vector.norm()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 16},
        {"pipeline_depth": 2},
        {"kv_cache_memory_bytes": 300_000, "max_model_len": 128},
    ],
)
def test_equals_transformers(tiny_llama: Path, pooling: Pooling, options: dict[str, Any]) -> None:
    given = {"dtype": "float32", "kv_cache_memory_bytes": 8_000_000, **options}
    with LLM(str(tiny_llama), **given) as llm:
        vectors = llm.embed(PROMPTS, pooling=pooling)
        again = llm.embed(PROMPTS, pooling=pooling)
        # A cached prefix must not leave its hidden states out.
        llm.generate(PROMPTS, SamplingParams(max_tokens=2))
        cached = llm.embed(PROMPTS, pooling=pooling)
    for prompt, *found in zip(PROMPTS, vectors, again, cached, strict=True):
        expected = _expected(tiny_llama, prompt, pooling)
        for vector in found:
            assert torch.allclose(torch.tensor(vector).double(), expected, atol=1e-5)


def test_generation_beside_it_is_unchanged(tiny_llama: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8)
    pooling = SamplingParams(max_tokens=1, pooling="mean")
    with LLM(str(tiny_llama), dtype="float32", kv_cache_memory_bytes=8_000_000) as llm:
        alone = llm.generate([PROMPTS[1]], params)[0].outputs[0].token_ids
        mixed = llm.generate([PROMPTS[0], PROMPTS[1], PROMPTS[3]], [pooling, params, pooling])
    assert mixed[1].outputs[0].token_ids == alone
    assert mixed[1].pooled is None
    assert mixed[0].pooled is not None


def test_pooling_needs_a_single_token() -> None:
    with pytest.raises(RequestError, match="one vector per prompt"):
        SamplingParams(pooling="mean", max_tokens=2)
