"""The part of a layer that computes on each token alone: an MLP, or a choice of experts.

Its description says which weights it has and how much it computes; loire.models.feed_forward
builds it.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from loire.checkpoint.weights import Matrix, Place, Vector

Scores = Literal["softmax", "softmax_of_chosen", "sigmoid"]


@dataclass(frozen=True, slots=True)
class ClampedSwiGLU:
    """(up + 1) * gate * sigmoid(alpha * gate), where gate is at most limit, and up lies within
    -limit and limit (gpt-oss)."""

    alpha: float = 1.702
    limit: float = 7.0


PlainActivation = Literal["silu", "gelu_tanh", "gelu"]
"""Of each number by itself."""
Activation = Literal["silu", "gelu_tanh", "gelu", "squared_relu"] | ClampedSwiGLU
"""squared_relu: max(x, 0) ** 2 (So et al. 2021, "Primer"). It is no gate: it is all that stands
between the two matrices of an MLP."""


def is_gate(activation: Activation) -> bool:
    """Whether something else is multiplied by what it gives."""
    return activation != "squared_relu"


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
    """Weights of an MLP."""

    gate_up: Matrix
    """Up alone, where the activation is no gate."""
    down: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedMLPDescription:
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, "GLU Variants Improve Transformer"), or,
    where the activation is no gate, down(activation(up(x))).

    name: what the names of its weights begin with.
    """

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False
    name: str = "mlp"

    @property
    def activation_elements(self) -> int:
        """Gate, up and their product."""
        return (3 if is_gate(self.activation) else 2) * self.intermediate_size

    def weights(self, place: Place) -> GatedMLPWeights:
        """Names as in Hugging Face's Llama."""
        prefix, size = f"{place.prefix}{self.name}.", self.intermediate_size
        return gated_mlp_weights(prefix, place.hidden_size, size, self.activation, bias=self.bias)


def gated_mlp_weights(
    prefix: str,
    hidden_size: int,
    intermediate_size: int,
    activation: Activation,
    *,
    bias: bool = False,
) -> GatedMLPWeights:
    """Of an MLP whose names begin with prefix."""
    gated = is_gate(activation)
    return GatedMLPWeights(
        gate_up=Matrix(
            name=f"{prefix}gate_up_proj" if gated else f"{prefix}up_proj",
            parts=(f"{prefix}gate_proj", f"{prefix}up_proj") if gated else (),
            rows=(intermediate_size,) * (2 if gated else 1),
            inputs=hidden_size,
            bias=bias,
            gated=gated,
        ),
        down=Matrix(
            name=f"{prefix}down_proj", rows=(hidden_size,), inputs=intermediate_size, bias=bias
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How a token chooses its experts by a router's logits, and what each of them weighs.

    It takes the top_k with the largest scores, the first of equals; those are their weights.

    Attributes:
        scores: softmax of the logits over all experts; over the chosen ones; the sigmoid of each.
        renormalise: the weights are divided by their sum.
        scale: the weights are multiplied by it.
        num_groups, chosen_groups: experts lie in so many groups of equal size, and a token may
            choose from so many of them alone (DeepSeek-AI 2024, "DeepSeek-V2"): those whose best
            expert, or with the sigmoid whose best two together, have the largest scores.

    Raises ValueError for numbers that do not go together.
    """

    num_experts: int
    top_k: int
    scores: Scores = "softmax"
    renormalise: bool = True
    scale: float = 1.0
    num_groups: int = 1
    chosen_groups: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.chosen_groups <= self.num_groups or self.num_experts % self.num_groups:
            raise ValueError(
                f"{self.num_experts} experts in {self.num_groups} groups, of which "
                f"{self.chosen_groups} are chosen"
            )
        most = self.num_experts // self.num_groups * self.chosen_groups
        if not 1 <= self.top_k <= most:
            raise ValueError(f"a token cannot choose {self.top_k} of {most} experts")


@dataclass(frozen=True, slots=True)
class ExpertsWeights:
    """Weights of experts and of what chooses among them."""

    router: Matrix
    choice_bias: Vector | None
    experts: tuple[GatedMLPWeights | None, ...]
    """None of those that another rank has."""
    shared: GatedMLPWeights | None
    shared_gate: Matrix | None
    router_norm: Vector | None = None
    norm: Vector | None = None
    """Before the experts, where the router has a norm of its own."""
    expert_scales: Vector | None = None
    """Per expert."""
    latent: tuple[Matrix, Matrix] | None = None
    """Into the space that the experts compute in, and out of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsDescription:
    """MLPs, of which a router chooses some for each token (Shazeer et al. 2017, "The
    sparsely-gated mixture-of-experts layer").

    Attributes:
        choice_bias: whether there is a bias that is added to scores where experts are compared,
            and to no weight.
        router_bias: whether the router's product has one.
        bias: whether the experts' products have one.
        shared_size: of one more expert, which every token goes through; 0: none.
        shared_gate: whether what it makes is multiplied by the sigmoid of its own gate
            (Qwen3-Next).
        latent_size: the experts, but neither the router nor the shared expert, compute with so many
            numbers of a token (Nemotron 3 Super); 0: the hidden size.
        own_norms: whether the router has an RMSNorm before it, and the experts have another: what
            goes in is not normalised then (Gemma 4).
        expert_scales: whether each expert's weight is multiplied by a number of its own.
        chunk_borders: where each chunk of the experts that a rank has begins, and the last one
            ends, if sums are taken in chunks.
    """

    routing: Routing
    intermediate_size: int
    """Of one expert."""
    activation: Activation = "silu"
    choice_bias: bool = False
    router_bias: bool = False
    bias: bool = False
    shared_size: int = 0
    shared_gate: bool = True
    latent_size: int = 0
    own_norms: bool = False
    expert_scales: bool = False
    chunk_borders: tuple[int, ...] = ()

    @property
    def activation_elements(self) -> int:
        """Of all chosen experts of a token: their inputs, gate, up and product."""
        return 4 * (self.routing.top_k * self.intermediate_size + self.shared_size)

    def share_read(self, num_tokens: int) -> float:
        """Share of the experts that a step of so many tokens reads, if each expert is as likely."""
        return 1.0 - (1.0 - self.routing.top_k / self.routing.num_experts) ** num_tokens

    def weights(self, place: Place) -> ExpertsWeights:
        """Names as in Hugging Face's Qwen3-MoE, each expert by itself."""
        prefix, num_experts = f"{place.prefix}mlp.", self.routing.num_experts
        hidden, latent = place.hidden_size, self.latent_size
        return ExpertsWeights(
            router=Matrix(
                name=f"{prefix}gate",
                rows=(num_experts,),
                inputs=place.hidden_size,
                bias=self.router_bias,
                role="router",
            ),
            choice_bias=(
                Vector(f"{prefix}gate.e_score_correction_bias", num_experts)
                if self.choice_bias
                else None
            ),
            experts=tuple(
                gated_mlp_weights(
                    f"{prefix}experts.{index}.",
                    latent or hidden,
                    self.intermediate_size,
                    self.activation,
                    bias=self.bias,
                )
                for index in range(num_experts)
            ),
            shared=gated_mlp_weights(
                f"{prefix}shared_expert.", hidden, self.shared_size, self.activation
            )
            if self.shared_size
            else None,
            shared_gate=Matrix(
                name=f"{prefix}shared_expert_gate",
                rows=(1,),
                inputs=place.hidden_size,
                role="router",
            )
            if self.shared_size and self.shared_gate
            else None,
            router_norm=(
                Vector(f"{prefix}gate.scale", place.hidden_size, factor=place.hidden_size**-0.5)
                if self.own_norms
                else None
            ),
            norm=place.norm("pre_feedforward_layernorm_2") if self.own_norms else None,
            expert_scales=(
                Vector(f"{prefix}experts.scale", num_experts) if self.expert_scales else None
            ),
            latent=(
                Matrix(name=f"{prefix}fc1_latent_proj", rows=(latent,), inputs=hidden),
                Matrix(name=f"{prefix}fc2_latent_proj", rows=(hidden,), inputs=latent),
            )
            if latent
            else None,
        )


@dataclass(frozen=True, slots=True)
class BranchWeights:
    """A part that stands beside others, between norms of its own."""

    before: Vector | None
    part: object
    after: Vector


@dataclass(frozen=True, slots=True)
class BranchDescription:
    """A part that stands beside others, and what its norms are called."""

    part: FeedForwardDescription
    before: str | None
    """None: the part normalises what goes in itself."""
    after: str

    def weights(self, place: Place) -> BranchWeights:
        """Of the part and of its norms."""
        before = None if self.before is None else place.norm(self.before)
        return BranchWeights(before, self.part.weights(place), place.norm(self.after))


@dataclass(frozen=True, slots=True)
class ParallelDescription:
    """Parts side by side: each has the same hidden states, not yet normalised, and what they make
    of them is added up (Gemma 4's experts beside a dense MLP)."""

    branches: tuple[BranchDescription, ...]

    @property
    def activation_elements(self) -> int:
        """One branch is computed after the other."""
        return max(branch.part.activation_elements for branch in self.branches)

    def weights(self, place: Place) -> tuple[BranchWeights, ...]:
        """Of each branch."""
        return tuple(branch.weights(place) for branch in self.branches)
