"""The part of a layer that computes on each token alone: a gated MLP, or a choice of experts.

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
        return gated_mlp_weights(
            f"{place.prefix}mlp.", place.hidden_size, self.intermediate_size, bias=self.bias
        )


def gated_mlp_weights(
    prefix: str, hidden_size: int, intermediate_size: int, *, bias: bool = False
) -> GatedMLPWeights:
    """Of a gated MLP whose names begin with prefix."""
    return GatedMLPWeights(
        gate_up=Matrix(
            name=f"{prefix}gate_up_proj",
            parts=(f"{prefix}gate_proj", f"{prefix}up_proj"),
            rows=(intermediate_size, intermediate_size),
            inputs=hidden_size,
            bias=bias,
            gated=True,
        ),
        down=Matrix(
            name=f"{prefix}down_proj", rows=(hidden_size,), inputs=intermediate_size, bias=bias
        ),
    )


@dataclass(frozen=True, slots=True)
class ExpertsWeights:
    """Weights of experts and of what chooses among them."""

    router: Matrix
    experts: tuple[GatedMLPWeights, ...]
    shared: GatedMLPWeights | None
    shared_gate: Matrix | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsDescription:
    """Gated MLPs, of which a router chooses some for each token (Shazeer et al. 2017, "The
    sparsely-gated mixture-of-experts layer").

    Attributes:
        top_k: experts of a token: those with the largest logits, the first of equals.
        renormalise: whether their weights, shares in the softmax over all experts, are made to
            sum to 1.
        shared_size: of one more expert, which every token goes through, times the sigmoid of its
            own gate (Qwen3-Next); 0: none.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    """Of one expert."""
    activation: Activation = "silu"
    renormalise: bool = True
    shared_size: int = 0

    @property
    def activation_elements(self) -> int:
        """Of all chosen experts of a token: their inputs, gate, up and product."""
        return 4 * (self.top_k * self.intermediate_size + self.shared_size)

    def share_read(self, num_tokens: int) -> float:
        """Share of the experts that a step of so many tokens reads, if each expert is as likely."""
        return 1.0 - (1.0 - self.top_k / self.num_experts) ** num_tokens

    def weights(self, place: Place) -> ExpertsWeights:
        """Names as in Hugging Face's Qwen3-MoE, each expert by itself."""
        prefix = f"{place.prefix}mlp."
        return ExpertsWeights(
            router=Matrix(
                name=f"{prefix}gate",
                rows=(self.num_experts,),
                inputs=place.hidden_size,
                role="router",
            ),
            experts=tuple(
                gated_mlp_weights(
                    f"{prefix}experts.{index}.", place.hidden_size, self.intermediate_size
                )
                for index in range(self.num_experts)
            ),
            shared=gated_mlp_weights(f"{prefix}shared_expert.", place.hidden_size, self.shared_size)
            if self.shared_size
            else None,
            shared_gate=Matrix(
                name=f"{prefix}shared_expert_gate",
                rows=(1,),
                inputs=place.hidden_size,
                role="router",
            )
            if self.shared_size
            else None,
        )
