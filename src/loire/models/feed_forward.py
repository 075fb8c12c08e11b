"""Feed-forward parts of loire.models.decoder, built from their descriptions."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loire.checkpoint.feed_forward import (
    Activation,
    ExpertsDescription,
    ExpertsWeights,
    FeedForwardDescription,
    GatedMLPDescription,
    GatedMLPWeights,
)
from loire.kernels.interface import FlatBatch, Linear, LinearKernels, PointwiseKernels
from loire.models.decoder import FeedForward
from loire.models.layer_loader import LayerLoader


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(activation(gate(x)) * up(x))."""

    gate_up: Linear
    """Gated: [T, E] to [T, I]."""
    down: Linear

    is_replayable: ClassVar[bool] = True

    def __call__(self, x: Tensor, batch: FlatBatch | None) -> Tensor:
        """[T, E] to [T, E]."""
        return self.down(self.gate_up(x, batch), batch)

    def bytes_per_step(self, num_tokens: int) -> int:
        """All of them."""
        return self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of both products."""
        return self.gate_up.weight_bytes + self.down.weight_bytes


@dataclass(frozen=True, slots=True)
class Experts:
    """Gated MLPs, of which a router chooses some for each token."""

    description: ExpertsDescription
    kernels: LinearKernels
    router: Linear
    experts: tuple[GatedMLP, ...]

    is_replayable: ClassVar[bool] = False

    def __call__(self, x: Tensor, batch: FlatBatch | None) -> Tensor:
        """[T, E] to [T, E]."""
        chosen, shares = self.choose(self.router(x, batch, wide=True))
        return self.kernels.experts(x, chosen, shares, self.experts)

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Experts (int64 [T, k]) and their weights (float32 [T, k]) by a router's logits."""
        shares = torch.softmax(logits, dim=-1)
        # A stable order, so that equals are chosen alike in any company.
        largest, order = shares.sort(dim=-1, descending=True, stable=True)
        top_k = self.description.top_k
        chosen, weights = order[:, :top_k], largest[:, :top_k]
        if self.description.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return chosen, weights

    def bytes_per_step(self, num_tokens: int) -> int:
        """Those of the experts that so many tokens may be expected to choose."""
        share = self.description.share_read(num_tokens)
        return self.router.weight_bytes + round(share * self._expert_bytes)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the router and all experts."""
        return self.router.weight_bytes + self._expert_bytes

    @property
    def _expert_bytes(self) -> int:
        return sum(expert.weight_bytes for expert in self.experts)


@dataclass(frozen=True, slots=True)
class WithSharedExpert:
    """Experts, and one more that every token goes through, times the sigmoid of its gate."""

    experts: Experts
    shared: GatedMLP
    gate: Linear
    pointwise: PointwiseKernels

    is_replayable: ClassVar[bool] = False

    def __call__(self, x: Tensor, batch: FlatBatch | None) -> Tensor:
        """[T, E] to [T, E]."""
        shared = self.pointwise.gate(self.shared(x, batch), self.gate(x, batch))
        return self.experts(x, batch) + shared

    def bytes_per_step(self, num_tokens: int) -> int:
        """Those of the experts that so many tokens may be expected to choose, and the shared."""
        return self.experts.bytes_per_step(num_tokens) + self._shared_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of them all."""
        return self.experts.weight_bytes + self._shared_bytes

    @property
    def _shared_bytes(self) -> int:
        return self.shared.weight_bytes + self.gate.weight_bytes


def build_feed_forward(
    description: FeedForwardDescription, weights: object, load: LayerLoader
) -> FeedForward:
    """The feed-forward part of a description with its weights."""
    if isinstance(description, GatedMLPDescription) and isinstance(weights, GatedMLPWeights):
        return _gated_mlp(weights, description.activation, load)
    if isinstance(description, ExpertsDescription) and isinstance(weights, ExpertsWeights):
        experts = Experts(
            description=description,
            kernels=load.kernels,
            router=load.linear(weights.router),
            experts=tuple(
                _gated_mlp(expert, description.activation, load) for expert in weights.experts
            ),
        )
        if weights.shared is None or weights.shared_gate is None:
            return experts
        return WithSharedExpert(
            experts=experts,
            shared=_gated_mlp(weights.shared, description.activation, load),
            gate=load.linear(weights.shared_gate),
            pointwise=load.pointwise,
        )
    raise TypeError(f"no feed-forward part is built from {type(description).__name__}")


def _gated_mlp(weights: GatedMLPWeights, activation: Activation, load: LayerLoader) -> GatedMLP:
    return GatedMLP(
        gate_up=load.linear(weights.gate_up, activation), down=load.linear(weights.down)
    )
