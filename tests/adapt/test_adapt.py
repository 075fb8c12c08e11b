"""Recovery adapters: what is trained is what is served, and a broken run goes on to the same."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loire import LLM, SamplingParams
from loire.adapt import distill
from loire.adapt import run as run_module
from loire.adapt.distill import divergence, hidden_states, load, pull_together
from loire.adapt.low_rank import AdaptedModule, attach, new_modules
from loire.adapt.run import Report, adapt
from loire.adapt.training import Training
from loire.base.errors import ConfigError
from loire.checkpoint.adapter import open_adapter
from loire.checkpoint.open import open_checkpoint
from loire.kernels.reference import ReferenceBackend
from loire.models.decoder import Decoder
from loire.quantize.calibration import read_text
from models.families import FAMILIES
from support.tiny_models import VOCAB_SIZE, save_tiny_llama, save_tokenizer

Models = tuple[Path, Path, Path]
"""The original, what became of it, and a text."""
TRAINING = Training(rank=4, passes=6, step_texts=2, learning_rate=0.03)


def pair(folder: Path, save: Callable[[Path], object]) -> Models:
    """A model, one that differs from it in a matrix of rank 2 per product, and a text."""
    for name in ("original", "changed"):
        (folder / name).mkdir()
        save(folder / name)
    generator = torch.Generator().manual_seed(1)
    file = folder / "changed" / "model.safetensors"
    tensors = load_file(file)
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            left = torch.randn(len(weight), 2, generator=generator)
            weight += 0.01 * left @ torch.randn(2, weight.shape[1], generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    text = folder / "text"
    text.write_text(read_text(None)[:1600])
    return folder / "original", folder / "changed", text


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return pair(tmp_path_factory.mktemp("models"), save_tiny_llama)


@pytest.fixture(scope="module")
def made(models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("made") / "repaired"
    return out, run(models, out)


def run(models: Models, out: Path, **changes: Any) -> Report:
    original, changed, text = models
    options = {"training": TRAINING, "text": text, "dtype": torch.float32, **changes}
    return adapt(open_checkpoint(changed), open_checkpoint(original), out, **options)


def test_it_repairs_and_is_served_as_it_was_trained(
    models: Models, made: tuple[Path, Report]
) -> None:
    out, report = made
    assert report.divergence_after < 0.75 * report.divergence_before
    adapter = open_adapter(out, open_checkpoint(models[1]).description)
    assert adapter.rank == TRAINING.rank
    assert len(adapter.parts) == 2 * 7
    assert served_nats(models, out) == pytest.approx(report.nats_after, abs=1e-3)


def served_nats(models: Models, adapter: Path) -> float:
    """Per token of the text that was kept apart to check with, of six the last."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    with LLM(str(models[1]), dtype="float32") as llm:
        checked = llm.frontend.tokenizer.encode(models[2].read_text())[256 * 5 : 256 * 6]
        llm.load_adapter("repaired", adapter)
        prompt = {"prompt_token_ids": checked}
        [answer] = llm.generate(prompt, params, lora_request="repaired")
    positions = answer.prompt_logprobs
    assert positions is not None
    losses = [
        -position[token].logprob
        for token, position in zip(checked[1:], positions[1:], strict=True)
        if position is not None
    ]
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("name", ["gemma3", "qwen3"])
def test_other_families_are_repaired(name: str, tmp_path: Path) -> None:
    [given] = [family for family in FAMILIES if family.name == name]
    sizes = {"vocab_size": VOCAB_SIZE, "num_hidden_layers": 2, "max_position_embeddings": 512}
    family = replace(given, settings={**given.settings, **sizes})

    def save(folder: Path) -> None:
        family.save(folder)
        save_tokenizer(folder)

    models = pair(tmp_path, save)
    report = run(models, tmp_path / "repaired")
    assert report.divergence_after < 0.8 * report.divergence_before
    served = served_nats(models, tmp_path / "repaired")
    assert served == pytest.approx(report.nats_after, abs=0.02)


TEXTS = [[3 + (7 * i * i + n) % 120 for i in range(24)] for n in range(2)]


def learner(name: str, folder: Path) -> tuple[Decoder, tuple[AdaptedModule, ...]]:
    """A model of a family with an adapter of random numbers."""
    [family] = [family for family in FAMILIES if family.name == name]
    family.save(folder)
    checkpoint = open_checkpoint(folder)
    decoder = load(checkpoint, 64, torch.float32, ReferenceBackend())
    modules = new_modules(checkpoint.description, checkpoint.tensors, 2, 0)
    generator = torch.Generator().manual_seed(0)
    for module in modules:
        module.up.normal_(0.0, 0.05, generator=generator)
        for _, half in module.matrices:
            half.requires_grad_()
    attach(modules, decoder)
    return decoder, modules


@pytest.mark.parametrize("name", ["gemma4_per_layer", "qwen3_5", "nemotron_h_latent"])
def test_every_kind_of_layer_can_be_trained(name: str, tmp_path: Path) -> None:
    """How the divergence changes along a direction is what the gradients say."""
    decoder, modules = learner(name, tmp_path)
    halves = [half for module in modules for _, half in module.matrices]
    with torch.no_grad():
        truth = hidden_states(decoder, TEXTS, adapted=False)

    def loss() -> torch.Tensor:
        return divergence(decoder, decoder, truth, hidden_states(decoder, TEXTS, adapted=True))

    loss().backward()
    generator = torch.Generator().manual_seed(1)
    told, ends, step = 0.0, [], []
    for half in halves:
        assert half.grad is not None
        assert half.grad.abs().max() > 0
        # (Upwards in all directions: what rounding does is small beside the sum.)
        step.append(1e-4 * torch.rand(half.shape, generator=generator) * half.grad.sign())
        told += float((half.grad * step[-1]).sum())
    with torch.no_grad():
        for sign in (1, -2):
            for half, change in zip(halves, step, strict=True):
                half += sign * change
            ends.append(float(loss()))
    assert (ends[0] - ends[1]) / 2 == pytest.approx(told, rel=0.03)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v2_lite", "glm4_moe_lite"])
def test_mixtures_learn(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What attention and shared parts add, a few steps find out, although experts are chosen anew
    in each. (Logits are compared in several parts: their gradients are the same.)"""
    decoder, modules = learner(name, tmp_path)
    monkeypatch.setattr(distill, "LOGITS_TOGETHER", 20 * decoder.description.vocab_size)
    with torch.no_grad():
        truth = hidden_states(decoder, TEXTS, adapted=True)
        for module in modules:
            module.up.zero_()
    halves = [half for module in modules for _, half in module.matrices]
    optimizer = torch.optim.Adam(halves, lr=0.01)
    found = []
    for _ in range(12):
        optimizer.zero_grad()
        states = hidden_states(decoder, TEXTS, adapted=True)
        found.append(pull_together(decoder, decoder, truth, states))
        optimizer.step()
    assert found[-1] < 0.5 * found[0]


def test_a_broken_run_goes_on_to_the_same_result(
    models: Models,
    made: tuple[Path, Report],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks_off(stage: str, share: float) -> None:
        if stage == "training" and share > 0.5:
            raise KeyboardInterrupt

    out = tmp_path / "repaired"
    monkeypatch.setattr(run_module, "SAVED_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(models, out, progress=breaks_off)
    assert not out.exists()
    with pytest.raises(ConfigError, match="unfinished work on another"):
        run(models, out, training=Training(rank=5))
    shares: list[float] = []
    report = run(models, out, progress=lambda stage, share: shares.append(share))
    assert report == made[1]
    assert sum(share > 0.5 for share in shares) < len(shares)
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (made[0] / name).read_bytes()
    assert not out.with_name("repaired.partial").exists()
    with pytest.raises(ConfigError, match="exists already"):
        run(models, out)


@pytest.mark.parametrize("changes", [{"rank": 0}, {"rank": 513}, {"passes": 0}])
def test_settings_that_cannot_be_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"but is {next(iter(changes.values()))}"):
        Training(**changes)
