"""Configurations and tensors of models with Mamba-2: older names, and what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from torch import Tensor

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.open import open_checkpoint
from loire.kernels.reference import ReferenceBackend
from loire.models.loading import load_decoder
from loire.planning.model_size import size_of_checkpoint
from support.paged_driver import CPU


def saved(name: str, directory: Path) -> Path:
    [family] = [family for family in FAMILIES if family.name == name]
    family.save(directory)
    return directory


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def change_tensors(directory: Path, changes: dict[str, Tensor | None]) -> None:
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: x for name, x in tensors.items() if x is not None}, path)


def load(directory: Path) -> None:
    load_decoder(
        open_checkpoint(directory),
        dtype=torch.float32,
        device=CPU,
        backend=ReferenceBackend(),
        max_model_len=64,
    )


def test_layers_by_older_names_and_by_letters(tmp_path: Path) -> None:
    directory = saved("nemotron_h_moe", tmp_path)
    whole = open_checkpoint(directory).description
    limits = {"time_step_limit": [0.0, float("inf")]}  # as json writes it: Infinity
    change_config(directory, layers_block_type=["moe", "mamba", "attention", "mamba"], **limits)
    assert open_checkpoint(directory).description == whole
    letters: dict[str, Any] = {"hybrid_override_pattern": "EM*M", "num_hidden_layers": 4}
    letters |= {"head_dim": ..., "attention_head_dim": 24}
    change_config(directory, layers_block_type=..., **letters)
    assert open_checkpoint(directory).description == whole
    change_config(directory, num_hidden_layers=5)
    with pytest.raises(CheckpointError, match="num_hidden_layers is 5, but there are kinds of 4"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("granitemoehybrid", {"mamba_n_groups": 3}, "8 heads of Mamba-2 .* multiple of 3 groups"),
        ("granitemoehybrid", {"mamba_n_heads": 6}, "6 heads of 16 .* times hidden_size, 128"),
        ("granitemoehybrid", {"layer_types": ["mamba", "rwkv", "mamba"]}, "layer_types should be"),
        ("granitemoehybrid", {"layer_types": ["mamba"]}, "kinds of 3 layers"),
        ("granitemoehybrid", {"time_step_limit": [1.0, 0.5]}, "two numbers, the least first"),
        ("granitemoehybrid", {"hidden_act": "gelu"}, "'gelu' is not supported with .* Mamba-2"),
        ("nemotron_h", {"layers_block_type": ["mlp"] * 4}, "no layer is attention or Mamba-2"),
        ("nemotron_h", {"mamba_num_heads": 2**31 - 8}, "mamba_num_heads should be .* to 65536"),
        ("nemotron_h", {"mlp_hidden_act": "silu"}, "mlp_hidden_act 'silu' is not supported"),
        ("nemotron_h_latent", {"topk_group": 5}, "8 experts in 4 groups, of which 5"),
        ("nemotron_h_latent", {"mlp_bias": True}, "mlp_bias is not supported with experts"),
    ],
)
def test_configurations_that_cannot_be(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    change_config(saved(family, tmp_path), **changes)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mixer.D", None, r"1 missing \(model.layers.0.mamba.D\)"),
        ("mixer.A_log", torch.zeros(5), r"A_log' has the shape \(5,\), but the model needs \(6,\)"),
        ("mixer.conv1d.weight", torch.zeros(208, 1, 3), r"\(208, 3\), but .* \(208, 4\)"),
        ("mixer.norm.weight", torch.zeros(72), r"\(72,\), but the model needs \(144,\)"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, name: str, tensor: Tensor | None, message: str
) -> None:
    saved("nemotron_h", tmp_path)
    change_tensors(tmp_path, {f"backbone.layers.0.{name}": tensor})
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_another_number_of_experts(tmp_path: Path) -> None:
    change_config(saved("nemotron_h_moe", tmp_path), n_routed_experts=5)
    with pytest.raises(CheckpointError, match=r"layer 0 should have 5 experts .* those of 6"):
        load(tmp_path)


def test_no_head(tmp_path: Path) -> None:
    saved("granitemoehybrid", tmp_path)
    change_tensors(tmp_path, {"lm_head.weight": None})
    with pytest.raises(CheckpointError, match=r"1 missing \(lm_head.weight\)"):
        load(tmp_path)


def test_the_plan_counts_states_and_what_a_token_is_multiplied_by(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved("nemotron_h_latent", tmp_path))
    size = size_of_checkpoint(
        checkpoint, "tiny", dtype="float32", quantization=None, kv_dtype="float32", on_cpu=False
    )
    heads, dim, states, groups, width = 6, 24, 16, 2, 4
    channels = heads * dim + 2 * groups * states
    state = (width - 1) * channels + heads * states * dim
    assert checkpoint.description.state_bytes == 4 * state
    mamba2 = 64 * (heads * dim + channels + heads) + heads * dim * 64
    attention = 64 * 24 * (4 + 2 * 2) + 4 * 24 * 64
    latent, routed, shared = 2 * 64 * 24, 3 * 2 * 24 * 40, 2 * 64 * 48
    experts = 8 * 64 + latent + routed + shared
    assert size.step_parameters == 128 * 64 + mamba2 + attention + 2 * experts
    assert size.num_parameters == sum(
        x.numel() for x in load_file(tmp_path / "model.safetensors").values()
    )
