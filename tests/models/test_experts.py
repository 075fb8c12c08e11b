"""Mixtures of experts: company changes nothing, reads are counted, bad files are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from torch import Tensor

from loire.base.errors import CheckpointError
from loire.checkpoint.open import open_checkpoint
from loire.kernels.experts import compute_experts
from loire.kernels.native.backend import NativeBackend
from loire.kernels.reference import ReferenceBackend, no_capture
from loire.models.decoder import Decoder
from loire.models.feed_forward import GatedMLP
from loire.models.loading import load_decoder
from loire.planning.model_size import size_of_checkpoint
from support.paged_driver import CPU, DrivenSequence, PagedDriver

usable, why = NativeBackend.available()


@pytest.fixture(scope="module")
def qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight experts, three for each token."""
    [family] = [family for family in FAMILIES if family.name == "qwen3_moe"]
    directory = tmp_path_factory.mktemp("qwen3_moe")
    family.save(directory)
    return directory


def load(directory: Path, kernels: type, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(
        open_checkpoint(directory), dtype=dtype, device=CPU, backend=kernels(), max_model_len=64
    )


@pytest.mark.skipif(not usable, reason=why)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_company(qwen3_moe: Path, dtype: torch.dtype) -> None:
    decoder = load(qwen3_moe, NativeBackend, dtype)
    prompts = [[3 + (7 * i * i + seed * i) % 125 for i in range(9 + seed)] for seed in range(6)]
    alone = []
    for prompt in prompts:
        sequence, driver = DrivenSequence(), PagedDriver(decoder)
        alone.append(torch.cat([driver.step([(sequence, [t])])[0] for t in prompt]))
    driver = PagedDriver(decoder)
    together = driver.step([(DrivenSequence(), prompt) for prompt in prompts])
    for single, among in zip(alone, together, strict=True):
        assert torch.equal(single, among)


@pytest.mark.skipif(not usable, reason=why)
def test_steps_are_replayed(qwen3_moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same bits, though other tokens choose other experts."""
    tokens = [3 + (7 * i * i + i) % 125 for i in range(40)]
    found = []
    for captures in (True, False):
        decoder = load(qwen3_moe, NativeBackend, torch.bfloat16)
        computed: list[int] = []
        stack = decoder._stack

        def counted(*given: Any, stack: Any = stack, computed: list[int] = computed) -> Tensor:
            computed.append(len(given[1]))
            result: Tensor = stack(*given)
            return result

        monkeypatch.setattr(decoder, "_stack", counted)
        if not captures:
            decoder.backend.capture = no_capture
        driver, sequence = PagedDriver(decoder), DrivenSequence()
        found.append(torch.cat([driver.step([(sequence, [token])])[0] for token in tokens]))
        assert len(computed) == (1 if captures else len(tokens))
    assert torch.equal(*found)


def test_a_tokens_sum_is_weighted() -> None:
    """Against every expert of every token, one by one."""
    generator = torch.Generator().manual_seed(0)
    kernels = ReferenceBackend().linear
    experts = []
    for _ in range(5):
        gate_up, down = (torch.randn(*size, generator=generator) for size in ((24, 8), (8, 12)))
        experts.append(GatedMLP(kernels.pack(gate_up, gate="silu"), kernels.pack(down)))
    x = torch.randn(7, 8, generator=generator)
    chosen = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(7)])
    weights = torch.rand(7, 2, generator=generator)
    expected = torch.zeros(7, 8)
    for token in range(7):
        for place in range(2):
            made = experts[chosen[token, place]](x[token : token + 1], None)[0]
            expected[token] += weights[token, place] * made
    found = compute_experts(x, chosen, weights, experts)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert compute_experts(x[:0], chosen[:0], weights[:0], experts).shape == (0, 8)


def test_a_step_reads_the_experts_that_its_tokens_choose(qwen3_moe: Path) -> None:
    decoder = load(qwen3_moe, ReferenceBackend)
    expert = 3 * 64 * 48 * 4
    others = decoder.bytes_per_step(1) - 3 * 3 * expert
    assert decoder.bytes_per_step(1000) == others + 3 * 8 * expert
    assert others + 3 * 3 * expert < decoder.bytes_per_step(2) < others + 3 * 6 * expert
    assert decoder.weight_bytes == decoder.bytes_per_step(1000) + 128 * 64 * 4


def test_plans_count_the_same_reads(qwen3_moe: Path) -> None:
    decoder = load(qwen3_moe, ReferenceBackend)
    size = size_of_checkpoint(
        open_checkpoint(qwen3_moe),
        "m",
        dtype="float32",
        quantization=None,
        kv_dtype="float32",
        on_cpu=False,
    )
    for tokens in (1, 2, 7, 1000):
        assert size.step_bytes(tokens) == pytest.approx(decoder.bytes_per_step(tokens), abs=8)
    assert size.step_weight_bytes == pytest.approx(decoder.bytes_per_step(1))
    assert size.step_parameters == pytest.approx(size.step_weight_bytes / 4)
    assert size.weight_bytes > 1.5 * size.step_weight_bytes


def changed(source: Path, target: Path, **config: object) -> Path:
    target.mkdir()
    settings = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | config))
    (target / "model.safetensors").symlink_to(source / "model.safetensors")
    return target


def test_a_missing_expert_is_named(qwen3_moe: Path, tmp_path: Path) -> None:
    path = changed(qwen3_moe, tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    del tensors[name]
    (path / "model.safetensors").unlink()
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"1 missing .{name}.; 0 unused"):
        load(path, ReferenceBackend)


def test_numbers_of_experts_that_disagree(qwen3_moe: Path, tmp_path: Path) -> None:
    key = "num_experts"
    if "num_local_experts" in json.loads((qwen3_moe / "config.json").read_text()):
        key = "num_local_experts"
    more = changed(qwen3_moe, tmp_path / "more", **{key: 9})
    with pytest.raises(CheckpointError, match=r"layer 0 should have 9 experts .* are those of 8"):
        load(more, ReferenceBackend)
    few = changed(qwen3_moe, tmp_path / "few", **{key: 2})
    with pytest.raises(CheckpointError, match=rf"num_experts_per_tok .*at most {key}, 2"):
        open_checkpoint(few)
