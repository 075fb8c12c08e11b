"""Adapters as PEFT saves them, for models of transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapter_tensors(
    model: PreTrainedModel, rank: int, modules: tuple[str, ...] = LINEAR, *, seed: int = 0
) -> dict[str, Tensor]:
    """Halves for all linear layers of these names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in modules and isinstance(module, torch.nn.Linear):
            prefix = f"base_model.model.{name}"
            sizes = {"A": (rank, module.in_features), "B": (module.out_features, rank)}
            for half, size in sizes.items():
                values = torch.randn(size, generator=generator) * 0.15
                tensors[f"{prefix}.lora_{half}.weight"] = values
    assert tensors
    return tensors


def save_adapter(directory: Path, tensors: Mapping[str, Tensor], rank: int, **config: Any) -> Path:
    """adapter_config.json and adapter_model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "task_type": "CAUSAL_LM",
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    save_file(dict(tensors), directory / "adapter_model.safetensors")
    return directory


def merged(model: PreTrainedModel, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Add an adapter to the model's own weights, in float32."""
    with torch.no_grad():
        for name, down in tensors.items():
            if ".lora_A." in name:
                up = tensors[name.replace(".lora_A.", ".lora_B.")]
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                weight = model.get_submodule(module).weight
                assert isinstance(weight, Tensor)
                weight += scale * up @ down
