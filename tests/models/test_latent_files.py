"""Files of models with latent attention: each setting matters, weights in few bits, layers that are
left aside, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from test_stored_weights import BACKENDS, Keeping, usable
from torch import Tensor

from loire.base.config import WeightQuantization
from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo
from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.feed_forward import ExpertsDescription
from loire.checkpoint.formats import BLOCK_FORMATS
from loire.checkpoint.huggingface_config import describe
from loire.checkpoint.latent_attention import LatentAttentionDescription
from loire.checkpoint.open import open_checkpoint
from loire.kernels.interface import Backend
from loire.kernels.native.backend import NativeBackend
from loire.kernels.reference import ReferenceBackend
from loire.models.loading import load_decoder
from support.blocks import blocks_of
from support.paged_driver import CPU, DrivenSequence, PagedDriver

TOKENS = [3 + (7 * i * i + i) % 125 for i in range(100)]
NATIVES = [NativeBackend] if usable else []
Change = Callable[[LayerDescription], LayerDescription]


def save(directory: Path, name: str, **settings: Any) -> Checkpoint:
    [family] = [family for family in FAMILIES if family.name == name]
    replace(family, settings={**family.settings, **settings}).save(directory)
    return open_checkpoint(directory)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    return cache(lambda name: save(tmp_path_factory.mktemp(name), name))


def logits(
    checkpoint: Checkpoint,
    backend: Backend | None = None,
    quantization: WeightQuantization = "auto",
) -> Tensor:
    decoder = load_decoder(
        checkpoint,
        dtype=torch.float32,
        device=CPU,
        backend=backend or ReferenceBackend(),
        max_model_len=128,
        quantization=quantization,
    )
    return PagedDriver(decoder).step([(DrivenSequence(), TOKENS)])[0]


def changed(description: ModelDescription, change: Change) -> ModelDescription:
    return replace(description, layers=tuple(map(change, description.layers)))


def attending(**changes: Any) -> Change:
    def change(layer: LayerDescription) -> LayerDescription:
        assert isinstance(layer.mixer, LatentAttentionDescription)
        return replace(layer, mixer=replace(layer.mixer, **changes))

    return change


def routing(**changes: Any) -> Change:
    def change(layer: LayerDescription) -> LayerDescription:
        experts = layer.feed_forward
        if not isinstance(experts, ExpertsDescription):
            return layer
        return replace(
            layer, feed_forward=replace(experts, routing=replace(experts.routing, **changes))
        )

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("deepseek_v2", attending(interleaved=False), id="pairs"),
        pytest.param("deepseek_v2", routing(chosen_groups=4), id="groups, softmax"),
        pytest.param("deepseek_v2", routing(scale=1.0), id="scale of experts"),
        pytest.param("deepseek_v2_lite", attending(scale=28**-0.5), id="mscale_all_dim"),
        pytest.param("deepseek_v2_lite", attending(norm_eps=1e-2), id="eps of latents"),
        pytest.param("deepseek_v3", routing(chosen_groups=4), id="groups, sigmoid"),
        pytest.param("deepseek_v3_halves", attending(interleaved=True), id="halves"),
        pytest.param("deepseek_v3_halves", routing(renormalise=True), id="renormalised"),
    ],
)
def test_without_a_setting_the_logits_differ(
    saved: Callable[[str], Checkpoint], name: str, change: Change
) -> None:
    checkpoint = saved(name)
    right = logits(checkpoint)
    wrong = logits(replace(checkpoint, description=changed(checkpoint.description, change)))
    assert (right - wrong).abs().max() > 2e-3 * right.abs().max()


def in_blocks(folder: Path, fmt: str) -> Checkpoint:
    """With the matrices of attention in blocks."""
    checkpoint = save(folder, "deepseek_v3", qk_nope_head_dim=24, kv_lora_rank=32, q_lora_rank=32,
                      v_head_dim=32, attention_bias=False)  # fmt: skip
    tensors = dict(checkpoint.tensors)
    with (folder / "blocks.bin").open("wb") as file:
        for index, (name, info) in enumerate(checkpoint.tensors.items()):
            if ".self_attn." not in name or len(info.shape) != 2:
                continue
            tensors[name] = TensorInfo(
                name=name,
                shape=info.shape,
                format=BLOCK_FORMATS[fmt],
                path=folder / "blocks.bin",
                offset=file.tell(),
                num_bytes=file.write(blocks_of(fmt, info.shape, index).tobytes()),
            )
    return replace(checkpoint, tensors=tensors)


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("fmt", ["Q8_0", "Q4_1"])
def test_blocks_of_a_file_are_taken_apart_by_heads(
    tmp_path: Path, kernels: type[Backend], fmt: str
) -> None:
    """Values stay as they are; keys are transposed, so that they become numbers."""
    checkpoint = in_blocks(tmp_path, fmt)
    kept, expanded = logits(checkpoint, kernels()), logits(checkpoint, Keeping(), "none")
    assert torch.allclose(kept, expanded, rtol=1e-4, atol=1e-4 * float(expanded.abs().max()))


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.1), ("int4", 0.8)])
def test_products_of_heads_are_rounded_as_others_are(
    tmp_path: Path, quantization: WeightQuantization, bound: float
) -> None:
    checkpoint = save(tmp_path, "deepseek_v3", first_k_dense_replace=3)  # no experts
    exact = logits(checkpoint)
    defined = logits(checkpoint, quantization=quantization)
    assert 0 < (defined - exact).std() < bound * exact.std()
    for kernels in NATIVES:
        found = logits(checkpoint, kernels(), quantization)
        assert (found - defined).std() < 0.05 * exact.std()


def test_layers_for_further_tokens_are_left_aside(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, "glm4_moe_lite")
    before = logits(checkpoint)
    [path] = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    last = "model.layers.2."
    tensors |= {
        name.replace(last, "model.layers.3."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    tensors["model.layers.3.eh_proj.weight"] = torch.zeros(64, 128)
    save_file(tensors, path, metadata={"format": "pt"})
    assert torch.equal(logits(open_checkpoint(tmp_path)), before)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("self_attn.kv_b_proj.weight", None, "layers.1.self_attn.kv_b_proj.weight"),
        ("mlp.experts.3.down_proj.weight", None, "layers.1.mlp.experts.3.down_proj.weight"),
        ("self_attn.kv_b_proj.weight", (190, 24), r"\(190, 24\), but the model needs \(192, 24\)"),
        ("mlp.gate.e_score_correction_bias", (7,), r"\(7,\), but the model needs \(8,\)"),
    ],
)
def test_files_that_lack_something_are_refused(
    saved: Callable[[str], Checkpoint],
    name: str,
    error: tuple[int, ...] | None,
    message: str,
) -> None:
    checkpoint = saved("deepseek_v3")
    tensors = dict(checkpoint.tensors)
    info = tensors.pop(f"model.layers.1.{name}")
    if error is not None:
        size = info.num_bytes // info.num_elements
        shorter = replace(info, shape=error, num_bytes=size * torch.Size(error).numel())
        tensors[f"model.layers.1.{name}"] = shorter
    with pytest.raises(CheckpointError, match=message):
        logits(replace(checkpoint, tensors=tensors))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("deepseek_v3", {"n_group": 3}, "8 experts in 3 groups, of which 2 are chosen"),
        ("deepseek_v3", {"topk_group": 5}, "8 experts in 4 groups, of which 5 are chosen"),
        ("deepseek_v3", {"num_experts_per_tok": 5}, "cannot choose 5 of 4 experts"),
        ("deepseek_v3", {"kv_lora_rank": 0}, "kv_lora_rank should be"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq 2 is not supported"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc' is not supported"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob are not supported"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense"]}, "mlp_layer_types should be 3 of dense"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    saved: Callable[[str], Checkpoint], name: str, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((saved(name).path / "config.json").read_text())
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        describe({**config, **changes}, "config.json")


def test_a_model_without_experts_has_mlps(saved: Callable[[str], Checkpoint]) -> None:
    config = json.loads((saved("deepseek_v3").path / "config.json").read_text())
    description = describe({**config, "n_routed_experts": None}, "config.json")
    assert not any(isinstance(x.feed_forward, ExpertsDescription) for x in description.layers)
