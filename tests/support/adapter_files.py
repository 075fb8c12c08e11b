"""Adapters as PEFT saves them, for models of transformers."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapter_tensors(
    model: PreTrainedModel,
    rank: int,
    modules: Collection[str] | None = LINEAR,
    *,
    seed: int = 0,
    size: float = 0.15,
) -> dict[str, Tensor]:
    """Halves for all linear layers of these names; None: for all in layers, and for the parameters
    that hold matrices of all experts."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}

    def add(prefix: str, outputs: int, inputs: int, ranks: int) -> None:
        for half, shape in {"A": (ranks, inputs), "B": (outputs, ranks)}.items():
            values = torch.randn(shape, generator=generator) * size
            tensors[f"base_model.model.{prefix}.lora_{half}.weight"] = values

    for name, module in model.named_modules():
        is_wanted = ".layers." in name if modules is None else name.rpartition(".")[2] in modules
        if is_wanted and isinstance(module, nn.Linear):
            add(name, module.out_features, module.in_features, rank)
    for name, parameter in _of_experts(model) if modules is None else ():
        count, outputs, inputs = parameter.shape
        if _inputs_first(model, name):
            outputs, inputs = inputs, outputs
        add(wrapped(name), outputs, inputs, rank * count)
    assert tensors
    return tensors


def target_parameters(model: PreTrainedModel) -> list[str]:
    """Parameters of all experts, as a configuration names them."""
    return sorted({".".join(name.split(".")[-2:]) for name, _ in _of_experts(model)})


def wrapped(parameter: str) -> str:
    """Where PEFT has the halves of a parameter of experts, all of which are adapted: it wraps the
    module once for each, in the order in which they are declared."""
    module, _, name = parameter.rpartition(".")
    return module if name == "down_proj" else f"{module}.base_layer"


def save_adapter(directory: Path, tensors: Mapping[str, Tensor], rank: int, **config: Any) -> Path:
    """adapter_config.json and adapter_model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "peft_version": "0.21.2",
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
    left = {name.removeprefix("base_model.model.") for name in tensors}

    def halves(module: str) -> tuple[Tensor, Tensor]:
        names = [f"{module}.lora_{half}.weight" for half in "AB"]
        left.difference_update(names)
        down, up = (tensors[f"base_model.model.{name}"] for name in names)
        return down, up

    with torch.no_grad():
        for name, parameter in _of_experts(model):
            if f"{wrapped(name)}.lora_A.weight" in left:
                down, up = halves(wrapped(name))
                downs = down.unflatten(0, (len(parameter), -1))
                added = torch.einsum("ore,eri->eoi", up.unflatten(1, (-1, len(parameter))), downs)
                parameter += scale * (added.mT if _inputs_first(model, name) else added)
        for module in [name.removesuffix(".lora_A.weight") for name in left if ".lora_A." in name]:
            down, up = halves(module)
            weight = model.get_submodule(module).weight
            assert isinstance(weight, Tensor)
            weight += scale * up @ down
    assert not left, "all of it is merged"


def _of_experts(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if ".experts." in name and parameter.ndim == 3:
            yield name, parameter


def _inputs_first(model: PreTrainedModel, parameter: str) -> bool:
    return bool(getattr(model.get_submodule(parameter.rpartition(".")[0]), "is_transposed", False))
