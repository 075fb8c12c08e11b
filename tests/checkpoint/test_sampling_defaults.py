"""What a model's makers recommend is what requests that say nothing of it are sampled with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import write_gguf, write_llama

from loire.base.config import EngineOptions
from loire.base.errors import CheckpointError
from loire.base.sampling import NEUTRAL, SamplingParams
from loire.checkpoint import sampling_defaults
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.registry import PINNED


def directory(folder: Path, **config: Any) -> Path:
    path = write_llama(folder)
    (path / "generation_config.json").write_text(json.dumps(config))
    return path


def test_generation_config(tmp_path: Path) -> None:
    config = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True, "max_length": 20}
    checkpoint = open_checkpoint(directory(tmp_path, **config))
    assert checkpoint.sampling_defaults.values == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert open_checkpoint(write_llama(tmp_path / "silent")).sampling_defaults.values == {}


@pytest.mark.parametrize("wrong", ["hot", [1], -1, 1e6, True, {}])
def test_nonsense_is_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: temperature should be"):
        open_checkpoint(directory(tmp_path, temperature=wrong))


def test_gguf_keys(tmp_path: Path) -> None:
    extra = {"general.sampling.temp": 0.5, "general.sampling.top_k": 40}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", extra=extra))
    assert checkpoint.sampling_defaults.values == {"temperature": 0.5, "top_k": 40}
    assert checkpoint.sampling_defaults.source.startswith("general.sampling in ")


def test_a_file_of_the_registry_has_the_registrys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert open_checkpoint(path).sampling_defaults.values == {}  # another size: another file
    [part] = PINNED["smollm2"].parts
    same_size = replace(part, num_bytes=path.stat().st_size)
    known = replace(PINNED["smollm2"], parts=(same_size,))
    monkeypatch.setattr(sampling_defaults, "PINNED", {"smollm2": known})
    found = open_checkpoint(path).sampling_defaults
    assert found.values == {"temperature": 0.2, "top_p": 0.9}
    assert found.source == "Loire's own entry for smollm2"


def test_what_is_not_given_is_the_models() -> None:
    params = SamplingParams(top_p=1.0, max_tokens=5)
    assert params.left_open == {"temperature", "top_k", "min_p", "repetition_penalty"}
    assert {name: getattr(params, name) for name in NEUTRAL} == dict(NEUTRAL)
    filled = params.filled({"temperature": 0.2, "top_p": 0.9, "top_k": 20})
    assert (filled.temperature, filled.top_p, filled.top_k, filled.max_tokens) == (0.2, 1.0, 20, 5)
    assert filled.left_open == frozenset()
    assert filled.filled({"temperature": 0.5}) is filled


def test_a_copy_leaves_open_what_it_does_not_change() -> None:
    params = replace(SamplingParams(), max_tokens=None)
    assert params.filled({"temperature": 0.2}).temperature == 0.2
    decided = replace(SamplingParams(), temperature=0.7)
    assert decided.filled({"temperature": 0.2}).temperature == 0.7


def test_options_come_before_what_is_recommended(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(directory(tmp_path, temperature=0.6, top_p=0.95))
    overridden = {"temperature": 0.1}
    asked = checkpoint.with_options(EngineOptions(override_generation_config=overridden))
    assert asked.sampling_defaults.values == {"temperature": 0.1, "top_p": 0.95}
    plain = checkpoint.with_options(EngineOptions(generation_config="none", chat_template="x"))
    assert (plain.sampling_defaults.values, plain.chat_template) == ({}, "x")
