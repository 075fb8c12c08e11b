"""Feed-forward parts of loire.models.decoder, built from their descriptions."""

from dataclasses import dataclass

from torch import Tensor

from loire.checkpoint.feed_forward import (
    FeedForwardDescription,
    GatedMLPDescription,
    GatedMLPWeights,
)
from loire.kernels.interface import FlatBatch, Linear
from loire.models.decoder import FeedForward
from loire.models.layer_loader import LayerLoader


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(activation(gate(x)) * up(x))."""

    gate_up: Linear
    """Gated: [T, E] to [T, I]."""
    down: Linear

    def __call__(self, x: Tensor, batch: FlatBatch) -> Tensor:
        """[T, E] to [T, E]."""
        return self.down(self.gate_up(x, batch), batch)

    def bytes_per_step(self, num_tokens: int) -> int:
        """All of them."""
        return self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of both products."""
        return self.gate_up.weight_bytes + self.down.weight_bytes


def build_feed_forward(
    description: FeedForwardDescription, weights: object, load: LayerLoader
) -> FeedForward:
    """The feed-forward part of a description with its weights."""
    if isinstance(description, GatedMLPDescription) and isinstance(weights, GatedMLPWeights):
        return GatedMLP(
            gate_up=load.linear(weights.gate_up, description.activation),
            down=load.linear(weights.down),
        )
    raise TypeError(f"no feed-forward part is built from {type(description).__name__}")
