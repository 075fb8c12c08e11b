"""How much memory LoRA adapters take, as loire.kernels holds them."""

import math
from collections import defaultdict
from dataclasses import dataclass

from loire.checkpoint.adapter_targets import AdapterTarget, AdapterTargets
from loire.checkpoint.description import ModelDescription

PANEL = 32
"""Outputs of a product that the native kernels keep together."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """So many of one rank, for all linear layers but the output head.

    Attributes:
        of_experts: whether those of experts have one each, too.
    """

    count: int
    rank: int
    of_experts: bool = False


def adapter_bytes(description: ModelDescription, adapters: Adapters, *, element_bytes: int) -> int:
    """Of all of them: both halves, the outputs of each product in whole panels."""
    products: dict[str, list[AdapterTarget]] = defaultdict(list)
    for target in AdapterTargets(description).by_name.values():
        # (Those of experts are counted once, as parameters of all of them.)
        is_counted = not _is_of_experts(target) or (adapters.of_experts and target.experts)
        if target.product != "lm_head" and is_counted:
            products[target.product].append(target)
    per_rank = 0
    for targets in products.values():
        # A product of several modules is named as a whole, too: adapters are for the modules.
        most = max(target.outputs for target in targets)
        modules = [t for t in targets if t.outputs < most] or targets
        per_rank += sum(
            (t.inputs + math.ceil(t.outputs / PANEL) * PANEL) * max(1, t.experts) for t in modules
        )
        # Each head's keys and values have the latents' half for themselves.
        per_rank += sum((2 * t.heads - 1) * t.inputs for t in modules if t.heads)
    return adapters.count * adapters.rank * per_rank * element_bytes


def _is_of_experts(target: AdapterTarget) -> bool:
    return ".experts." in target.product
