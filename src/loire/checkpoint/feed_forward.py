"""The part of a layer that computes on each token alone: today a gated MLP.

Its description says which weights it has and how much it computes; loire.models.feed_forward
builds it.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from loire.checkpoint.weights import Matrix, Place

Activation = Literal["silu", "gelu_tanh", "gelu"]


class FeedForwardDescription(Protocol):
    """One feed-forward part, apart from where it stands."""

    @property
    def activation_elements(self) -> int:
        """Numbers per token that live at once between its products."""
        ...

    def weights(self, place: Place) -> object:
        """A dataclass of its weights."""
        ...


@dataclass(frozen=True, slots=True)
class GatedMLPWeights:
    """Weights of a gated MLP."""

    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedMLPDescription:
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, "GLU Variants Improve Transformer")."""

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False

    @property
    def activation_elements(self) -> int:
        """Gate, up and their product."""
        return 3 * self.intermediate_size

    def weights(self, place: Place) -> GatedMLPWeights:
        """Names as in Hugging Face's Llama."""
        prefix, size = f"{place.prefix}mlp.", self.intermediate_size
        return GatedMLPWeights(
            gate_up=Matrix(
                name=f"{prefix}gate_up_proj",
                parts=(f"{prefix}gate_proj", f"{prefix}up_proj"),
                rows=(size, size),
                inputs=place.hidden_size,
                bias=self.bias,
            ),
            down=Matrix(
                name=f"{prefix}down_proj",
                rows=(place.hidden_size,),
                inputs=size,
                bias=self.bias,
            ),
        )
