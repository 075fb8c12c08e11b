"""Feed-forward parts of loire.models.decoder, built from their descriptions."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from loire.checkpoint.feed_forward import (
    Activation,
    BranchWeights,
    ExpertsDescription,
    ExpertsWeights,
    FeedForwardDescription,
    GatedMLPDescription,
    GatedMLPWeights,
    ParallelDescription,
)
from loire.kernels.interface import ExpertChunks, FlatBatch, Linear, PointwiseKernels
from loire.kernels.interface import Experts as KernelExperts
from loire.models.decoder import FeedForward
from loire.models.layer_loader import LayerLoader


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(activation(gate(x)) * up(x)), or down(activation(up(x)))."""

    gate_up: Linear
    """With the activation: [T, E] to [T, I]."""
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
class OwnNorms:
    """RMSNorms of experts whose input is not normalised: float32 [E]."""

    pointwise: PointwiseKernels
    router: Tensor
    experts: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Latent:
    """A space of fewer dimensions that experts compute in."""

    pointwise: PointwiseKernels
    into: Linear
    out: Linear

    @property
    def weight_bytes(self) -> int:
        """Bytes of both products."""
        return self.into.weight_bytes + self.out.weight_bytes


@dataclass(frozen=True, slots=True)
class Experts:
    """MLPs, of which a router chooses some for each token."""

    description: ExpertsDescription
    router: Linear
    experts: KernelExperts
    own_norms: OwnNorms | None = None
    latent: Latent | None = None

    @property
    def is_replayable(self) -> bool:
        """Whether the backend can record them."""
        return self.experts.is_replayable

    def __call__(self, x: Tensor, batch: FlatBatch | None, beside: Tensor | None = None) -> Tensor:
        """[T, E] to [T, E], and beside [T, E] added."""
        routed, norms = x, self.own_norms
        if norms is not None:
            routed = norms.pointwise.rms_norm(x, norms.router, norms.eps)
            x = norms.pointwise.rms_norm(x, norms.experts, norms.eps)
        logits, latent = self.router(routed, batch, wide=True), self.latent
        if latent is None:
            return self.experts(x, logits, beside, batch)
        given = latent.into(x, batch)
        made = latent.out(self.experts(given, logits, batch=batch), batch)
        return made if beside is None else latent.pointwise.add(made, beside)

    def bytes_per_step(self, num_tokens: int) -> int:
        """Those of the experts that so many tokens may be expected to choose."""
        share = self.description.share_read(num_tokens)
        return self._other_bytes + round(share * self.experts.weight_bytes)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the router and all experts."""
        return self._other_bytes + self.experts.weight_bytes

    @property
    def _other_bytes(self) -> int:
        latent = 0 if self.latent is None else self.latent.weight_bytes
        return self.router.weight_bytes + latent


@dataclass(frozen=True, slots=True)
class WithSharedExpert:
    """Experts, and one more that every token goes through, perhaps times a gate's sigmoid."""

    experts: Experts
    shared: GatedMLP
    gate: Linear | None
    pointwise: PointwiseKernels

    @property
    def is_replayable(self) -> bool:
        """Whether the backend can record all of them."""
        return self.experts.is_replayable

    def __call__(self, x: Tensor, batch: FlatBatch | None) -> Tensor:
        """[T, E] to [T, E]."""
        shared = self.shared(x, batch)
        if self.gate is not None:
            shared = self.pointwise.gate(shared, self.gate(x, batch))
        return self.experts(x, batch, shared)

    def bytes_per_step(self, num_tokens: int) -> int:
        """Those of the experts that so many tokens may be expected to choose, and the shared."""
        return self.experts.bytes_per_step(num_tokens) + self._shared_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of them all."""
        return self.experts.weight_bytes + self._shared_bytes

    @property
    def _shared_bytes(self) -> int:
        gate_bytes = 0 if self.gate is None else self.gate.weight_bytes
        return self.shared.weight_bytes + gate_bytes


@dataclass(frozen=True, slots=True)
class Branch:
    """A part beside others, between RMSNorms of its own: float32 [E]."""

    before: Tensor | None
    part: FeedForward
    after: Tensor


@dataclass(frozen=True, slots=True)
class Parallel:
    """Parts side by side: each gets the same hidden states, and their results are added up."""

    pointwise: PointwiseKernels
    branches: tuple[Branch, ...]
    eps: float

    @property
    def is_replayable(self) -> bool:
        """Whether all of them are."""
        return all(branch.part.is_replayable for branch in self.branches)

    def __call__(self, x: Tensor, batch: FlatBatch) -> Tensor:
        """[T, E] of hidden states [T, E], not normalised."""
        total: Tensor | None = None
        for branch in self.branches:
            given = x
            if branch.before is not None:
                given = self.pointwise.rms_norm(x, branch.before, self.eps)
            made = self.pointwise.rms_norm(branch.part(given, batch), branch.after, self.eps)
            total = made if total is None else self.pointwise.add(total, made)
        assert total is not None, "there are branches"
        return total

    def bytes_per_step(self, num_tokens: int) -> int:
        """Of all parts."""
        return sum(branch.part.bytes_per_step(num_tokens) for branch in self.branches)

    @property
    def weight_bytes(self) -> int:
        """Of all parts."""
        return sum(branch.part.weight_bytes for branch in self.branches)


def build_feed_forward(
    description: FeedForwardDescription, weights: object, load: LayerLoader
) -> FeedForward:
    """The feed-forward part of a description with its weights."""
    if isinstance(description, GatedMLPDescription) and isinstance(weights, GatedMLPWeights):
        return _gated_mlp(weights, description.activation, load)
    if isinstance(description, ParallelDescription) and isinstance(weights, tuple):
        return _parallel(description, weights, load)
    if isinstance(description, ExpertsDescription) and isinstance(weights, ExpertsWeights):
        own_norms = None
        if weights.router_norm is not None and weights.norm is not None:
            router_norm, norm = load.vector(weights.router_norm), load.vector(weights.norm)
            own_norms = OwnNorms(load.pointwise, router_norm, norm, load.norm_eps)
        bias = None if weights.choice_bias is None else load.vector(weights.choice_bias)
        scales = None if weights.expert_scales is None else load.vector(weights.expert_scales)
        parts = [
            None if expert is None else _gated_mlp(expert, description.activation, load)
            for expert in weights.experts
        ]
        borders = description.chunk_borders
        chunks = ExpertChunks(borders, load.ranks) if borders else None
        experts = Experts(
            description=description,
            router=load.linear(weights.router),
            experts=load.kernels.experts(parts, description.routing, bias, scales, chunks),
            own_norms=own_norms,
            latent=(
                None
                if weights.latent is None
                else Latent(load.pointwise, *map(load.linear, weights.latent))
            ),
        )
        if weights.shared is None:
            return experts
        return WithSharedExpert(
            experts=experts,
            shared=_gated_mlp(weights.shared, description.activation, load),
            gate=None if weights.shared_gate is None else load.linear(weights.shared_gate),
            pointwise=load.pointwise,
        )
    raise TypeError(f"no feed-forward part is built from {type(description).__name__}")


def _parallel(
    description: ParallelDescription, weights: tuple[BranchWeights, ...], load: LayerLoader
) -> Parallel:
    def branch(part: FeedForwardDescription, own: BranchWeights) -> Branch:
        before = None if own.before is None else load.vector(own.before)
        return Branch(before, build_feed_forward(part, own.part, load), load.vector(own.after))

    pairs = zip(description.branches, weights, strict=True)
    branches = tuple(branch(described.part, own) for described, own in pairs)
    return Parallel(load.pointwise, branches, load.norm_eps)


def _gated_mlp(weights: GatedMLPWeights, activation: Activation, load: LayerLoader) -> GatedMLP:
    return GatedMLP(
        gate_up=load.linear(weights.gate_up, activation), down=load.linear(weights.down)
    )
