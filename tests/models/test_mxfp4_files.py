"""gpt-oss in MXFP4, as its safetensors files have it: the numbers that transformers makes of it."""

import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.digest import model_digest
from loire.checkpoint.formats import MXFP4
from loire.checkpoint.open import open_checkpoint
from loire.kernels.select import available_backends, select_backend
from loire.models.loading import load_decoder
from support.paged_driver import CPU, DrivenSequence, PagedDriver

TOKENS = [3 + (11 * i * i + 5 * i) % 125 for i in range(70)]
BACKENDS = [info.name for info in available_backends() if info.usable]


def random_codes(like: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blocks and scales for a tensor of experts, [experts, inputs, outputs]."""
    experts, inputs, outputs = like.shape
    size = (experts, outputs, inputs // 32)
    blocks = torch.randint(0, 256, (*size, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(120, 125, size, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A directory, and transformers' logits with the same numbers."""
    [family] = [family for family in FAMILIES if family.name == "gpt_oss"]
    directory = tmp_path_factory.mktemp("gpt_oss_mxfp4")
    model = family.save(directory)
    assert isinstance(model, GptOssForCausalLM)
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(directory / "model.safetensors")
    state = model.state_dict()
    for name in [name for name in tensors if name.endswith(("up_proj", "down_proj"))]:
        blocks, scales = random_codes(tensors.pop(name), generator)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        # (It changes the scales that it is given.)
        values = convert_moe_packed_tensors(blocks, scales.clone(), dtype=torch.float32)
        state[name].copy_(values)
    save_file(tensors, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (directory / "config.json").write_text(json.dumps(config))
    with torch.inference_mode():
        return directory, model(torch.tensor([TOKENS])).logits[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("quantization", ["auto", "none"])
def test_computes_with_its_numbers(
    written: tuple[Path, Tensor], backend: str, quantization: str
) -> None:
    directory, expected = written
    checkpoint = open_checkpoint(directory)
    decoder = load_decoder(
        checkpoint,
        dtype=torch.float32,
        device=CPU,
        backend=select_backend(backend, CPU, torch.float32),
        max_model_len=128,
        quantization=quantization,  # type: ignore[arg-type]
    )
    [found] = PagedDriver(decoder).step([(DrivenSequence(), TOKENS)])
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    if backend == "native" and quantization == "auto":
        assert decoder.weight_bytes < checkpoint.num_parameters * 3  # most of it in four bits


def test_a_tensor_of_bytes_has_its_exponents(written: tuple[Path, Tensor]) -> None:
    checkpoint = open_checkpoint(written[0])
    info = checkpoint.tensors["model.layers.1.mlp.experts.4.gate_up_proj.weight"]
    assert (info.shape, info.format) == ((192, 64), MXFP4)
    assert info.stored_bytes == 192 * 2 * 17


def changed(source: Path, target: Path, **tensors: Tensor | None) -> Path:
    target.mkdir()
    (target / "config.json").symlink_to(source / "config.json")
    found: dict[str, Tensor | None] = {**load_file(source / "model.safetensors"), **tensors}
    kept = {name: tensor for name, tensor in found.items() if tensor is not None}
    save_file(kept, target / "model.safetensors")
    return target


def test_what_does_not_fit_is_named(written: tuple[Path, Tensor], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    with pytest.raises(CheckpointError, match=f"'{name}_scales' is missing"):
        open_checkpoint(changed(written[0], tmp_path / "a", **{f"{name}_scales": None}))
    short = torch.zeros(6, 64, 2, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=r"\(6, 64, 3, 16\) and \(6, 64, 2\)"):
        open_checkpoint(changed(written[0], tmp_path / "b", **{f"{name}_scales": short}))
    lone = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(128, 64, dtype=torch.uint8)}
    with pytest.raises(UnsupportedModelError, match=r"q_proj.*has dtype U8"):
        open_checkpoint(changed(written[0], tmp_path / "c", **lone))


def test_exponents_are_part_of_what_a_model_is(
    written: tuple[Path, Tensor], tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.experts.down_proj_scales"
    other = load_file(written[0] / "model.safetensors")[name] + 1
    path = changed(written[0], tmp_path / "other", **{name: other})
    assert model_digest(open_checkpoint(path)) != model_digest(open_checkpoint(written[0]))
