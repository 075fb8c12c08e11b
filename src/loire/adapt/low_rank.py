"""The matrices that are trained, where in a model they stand, and PEFT's files of them."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.adapter import CONFIG, WEIGHTS
from loire.checkpoint.adapter_targets import AdapterTarget, AdapterTargets
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.weights import Matrix, matrices
from loire.kernels.interface import Linear, LowRank
from loire.kernels.reference_linear import LowRankParts
from loire.models.decoder import Decoder
from loire.quantize.work import write_tensors

NUMBER = 0
"""The adapter's, as products count them."""
_NOT_TRAINED = (".experts.", ".mamba.", ".conv.")
"""In names of layers."""


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """What is added to one linear layer: up (down x)."""

    name: str
    target: AdapterTarget
    down: Tensor
    """float32 [rank, inputs]."""
    up: Tensor
    """float32 [outputs, rank]."""

    @property
    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Both, by the names that PEFT gives them."""
        prefix = f"base_model.model.{self.name}"
        yield f"{prefix}.lora_A.weight", self.down
        yield f"{prefix}.lora_B.weight", self.up


def new_modules(
    description: ModelDescription, present: Collection[str], rank: int, seed: int
) -> tuple[AdaptedModule, ...]:
    """One for each linear layer of the model's layers that can have an adapter, adding nothing yet.

    present: names of the model's tensors: a product that the file has in parts is adapted in parts.
    Raises UnsupportedModelError for a model without any such layer.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = AdapterTargets(description).by_name
    found = []
    for matrix in matrices(description.weights().layers):
        for name in _names(matrix, present):
            target = targets.get(name)
            if target is None or matrix.role != "product":
                continue
            # (What is trained is what products hold, in their order; and an expert sees few texts.)
            in_heads = target.is_moved or target.heads > 0
            if in_heads or any(part in name for part in _NOT_TRAINED):
                continue
            # (As Linear layers begin: Hu et al. 2021 begin the first half so, the second with 0.)
            bound = 1.0 / math.sqrt(target.inputs)
            down = torch.empty(rank, target.inputs).uniform_(-bound, bound, generator=generator)
            found.append(AdaptedModule(name, target, down, torch.zeros(target.outputs, rank)))
    if not found:
        raise UnsupportedModelError(
            f"no linear layer of this {description.architecture} model can have an adapter"
        )
    return tuple(found)


def _names(matrix: Matrix, present: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name, _ in matrix.pieces(present))


def attach(modules: Collection[AdaptedModule], decoder: Decoder) -> None:
    """The decoder's products add what the modules hold, from now on and as they change: for tokens
    of adapter NUMBER. Its backend is the reference."""
    parts: dict[Linear, list[LowRank]] = {}
    for module in modules:
        whole = LowRank(module.down, module.up, module.target.first)
        for product, own in decoder.adaptable[module.target.product].shares(whole):
            parts.setdefault(product, []).append(own)
    for product, found in parts.items():
        product.adapt(NUMBER, LowRankParts(tuple(found)))


def save(modules: Collection[AdaptedModule], rank: int, base: str, directory: Path) -> None:
    """adapter_config.json and adapter_model.safetensors (float16 would do, but PEFT expects what
    was trained: float32)."""
    directory.mkdir()
    tensors = {name: half.detach() for module in modules for name, half in module.matrices}
    write_tensors(directory / WEIGHTS, tensors, {"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(_config(modules, rank, base), indent=1))


def _config(modules: Collection[AdaptedModule], rank: int, base: str) -> Mapping[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({module.name.rpartition(".")[2] for module in modules}),
        "inference_mode": True,
    }
