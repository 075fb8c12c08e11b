"""Feed-forward parts of loire.models.decoder, built from their descriptions."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from loire.checkpoint.feed_forward import (
    Activation,
    ExpertsDescription,
    ExpertsWeights,
    FeedForwardDescription,
    GatedMLPDescription,
    GatedMLPWeights,
)
from loire.kernels.interface import Experts as KernelExperts
from loire.kernels.interface import FlatBatch, Linear, PointwiseKernels
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
    router: Linear
    experts: KernelExperts

    @property
    def is_replayable(self) -> bool:
        """Whether the backend can record them."""
        return self.experts.is_replayable

    def __call__(self, x: Tensor, batch: FlatBatch | None) -> Tensor:
        """[T, E] to [T, E]."""
        return self.experts(x, self.router(x, batch, wide=True))

    def bytes_per_step(self, num_tokens: int) -> int:
        """Those of the experts that so many tokens may be expected to choose."""
        share = self.description.share_read(num_tokens)
        return self.router.weight_bytes + round(share * self.experts.weight_bytes)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the router and all experts."""
        return self.router.weight_bytes + self.experts.weight_bytes


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
        bias = None if weights.choice_bias is None else load.vector(weights.choice_bias)
        parts = [_gated_mlp(expert, description.activation, load) for expert in weights.experts]
        experts = Experts(
            description=description,
            router=load.linear(weights.router),
            experts=load.kernels.experts(parts, description.routing, bias),
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
