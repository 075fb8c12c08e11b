"""Experts, states and latents: what is served is what was measured."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loire import LLM, SamplingParams
from loire.checkpoint.open import open_checkpoint
from loire.quantize.calibration import read_text
from loire.quantize.run import quantize
from loire.text.tokenizer import checkpoint_tokenizer
from models.families import DELTA_NET, FAMILIES, LATENTS, SHARED, Family
from support.tiny_models import VOCAB_SIZE, save_tokenizer

WHOLE_GROUPS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**DELTA_NET, **SHARED, "shared_expert_intermediate_size": 64},
    "deepseek_v3": {**LATENTS, "kv_lora_rank": 32, "v_head_dim": 32, "q_lora_rank": 32},
    "granitemoehybrid": {"shared_intermediate_size": 64},
}
"""Settings that give rows of whole groups of 32."""


@pytest.mark.parametrize("name", WHOLE_GROUPS)
def test_what_is_served_is_what_was_measured(name: str, tmp_path: Path) -> None:
    [family] = [family for family in FAMILIES if family.name == name]
    settings = {**family.settings, **WHOLE_GROUPS[name], "vocab_size": VOCAB_SIZE}
    given: Family = replace(family, settings=settings)
    given.save(tmp_path / "source")
    save_tokenizer(tmp_path / "source")
    source, out = open_checkpoint(tmp_path / "source"), tmp_path / "out"
    text = read_text(None)[:900]
    tokenizer, kept = checkpoint_tokenizer(source), tmp_path / "kept"
    report = quantize(source, tokenizer, text, out, 6.0, kept=kept)
    assert report.bits <= 6.0
    assert open_checkpoint(out).description == source.description
    with LLM(str(out), dtype="float32", quantization="none", max_model_len=256) as llm:
        checked = llm.frontend.tokenizer.encode(text)
        length = 256
        last = len(checked) // length - 1
        prompt = {"prompt_token_ids": checked[last * length : (last + 1) * length - 1]}
        [answer] = llm.generate(prompt, SamplingParams(max_tokens=1, prompt_logprobs=0))
    positions = answer.prompt_logprobs
    assert positions is not None
    losses = [
        -position[token].logprob
        for token, position in zip(prompt["prompt_token_ids"][1:], positions[1:], strict=True)
        if position is not None
    ]
    found = math.fsum(losses) / len(losses)
    assert found == pytest.approx(math.log(report.perplexity_after), abs=0.05)
