"""Mixers with a state, built from their descriptions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from loire.checkpoint.recurrent_mixers import (
    GatedDeltaNetDescription,
    GatedDeltaNetWeights,
    Mamba2Description,
    Mamba2Weights,
    ShortConvolutionDescription,
    ShortConvolutionWeights,
)
from loire.kernels.interface import (
    AttentionPlan,
    Backend,
    DeltaNetShape,
    DeltaNetWeights,
    FlatBatch,
    LayerCache,
    Linear,
    Mamba2Shape,
    StateCache,
)
from loire.kernels.interface import Mamba2Weights as KernelMamba2Weights
from loire.models.layer_loader import LayerLoader


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recurrent(ABC):
    """All but the last product changes the state, so remember() does it for every token."""

    output: Linear
    is_replayable: bool

    def recall(
        self,
        remembered: Tensor,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, E] of what remember() gave for these tokens."""
        return self.output(remembered, batch)

    def bytes_per_step(self, num_tokens: int) -> int:
        """All of them."""
        return self.weight_bytes

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNet(_Recurrent):
    """The gated delta rule behind a convolution: see RecurrentKernels.gated_delta_net()."""

    shape: DeltaNetShape
    weights: DeltaNetWeights
    qkv_gate: Linear
    beta_alpha: Linear

    def remember(
        self,
        x: Tensor,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, Hv * Dv] of x [T, E]."""
        assert isinstance(cache, StateCache)
        return backend.recurrent.gated_delta_net(
            self.qkv_gate(x, batch),
            self.beta_alpha(x, batch),
            self.weights,
            self.shape,
            batch,
            plan,
            cache,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the products."""
        products = (self.qkv_gate, self.beta_alpha, self.output)
        return sum(product.weight_bytes for product in products)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2(_Recurrent):
    """State space duality behind a convolution: see RecurrentKernels.mamba2()."""

    shape: Mamba2Shape
    weights: KernelMamba2Weights
    input: Linear

    def remember(
        self,
        x: Tensor,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, H * D] of x [T, E]."""
        assert isinstance(cache, StateCache)
        return backend.recurrent.mamba2(
            self.input(x, batch), self.weights, self.shape, batch, plan, cache
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of both products."""
        return self.input.weight_bytes + self.output.weight_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution(_Recurrent):
    """output(second * convolution(first * x))."""

    filters: Tensor
    """float32 [width, E]."""
    bias: Tensor | None
    input: Linear

    def remember(
        self,
        x: Tensor,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, E] of x [T, E]."""
        assert isinstance(cache, StateCache)
        gated = self.input(x, batch)
        return backend.recurrent.short_convolution(
            gated, self.filters, self.bias, batch, plan, cache
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of both products."""
        return self.input.weight_bytes + self.output.weight_bytes


def _rate(decay: Tensor, *, is_log: bool) -> Tensor:
    """How fast each head forgets, of what the file has: see decay_is_log."""
    return torch.exp(decay) if is_log else -decay


def gated_delta_net(
    description: GatedDeltaNetDescription, weights: GatedDeltaNetWeights, load: LayerLoader
) -> GatedDeltaNet:
    """With its weights."""
    return GatedDeltaNet(
        shape=DeltaNetShape(
            num_key_heads=description.num_key_heads,
            num_value_heads=description.num_value_heads,
            key_dim=description.key_dim,
            value_dim=description.value_dim,
            heads_in_turn=description.heads_in_turn,
            eps=load.norm_eps,
        ),
        weights=DeltaNetWeights(
            filters=load.filters(weights.filters).T.contiguous(),
            rate=_rate(load.vector(weights.decay), is_log=description.decay_is_log),
            decay_bias=load.vector(weights.decay_bias),
            norm=load.vector(weights.norm),
        ),
        qkv_gate=load.linear(weights.qkv_gate),
        beta_alpha=load.linear(weights.beta_alpha),
        output=load.linear(weights.output),
        is_replayable=load.recurrent.is_replayable,
    )


def mamba2(description: Mamba2Description, weights: Mamba2Weights, load: LayerLoader) -> Mamba2:
    """With its weights."""
    return Mamba2(
        shape=Mamba2Shape(
            num_heads=description.num_heads,
            num_groups=description.num_groups,
            head_dim=description.head_dim,
            state_dim=description.state_dim,
            least_step=description.least_step,
            most_step=description.most_step,
            eps=load.norm_eps,
        ),
        weights=KernelMamba2Weights(
            filters=load.filters(weights.filters).T.contiguous(),
            filter_bias=None if weights.filter_bias is None else load.vector(weights.filter_bias),
            rate=_rate(load.vector(weights.decay), is_log=description.decay_is_log),
            step_bias=load.vector(weights.step_bias),
            skip=load.vector(weights.skip),
            norm=load.vector(weights.norm),
        ),
        input=load.linear(weights.input),
        output=load.linear(weights.output),
        is_replayable=load.recurrent.is_replayable,
    )


def short_convolution(
    description: ShortConvolutionDescription, weights: ShortConvolutionWeights, load: LayerLoader
) -> ShortConvolution:
    """With its weights."""
    return ShortConvolution(
        filters=load.filters(weights.filters).T.contiguous(),
        bias=None if weights.filter_bias is None else load.vector(weights.filter_bias),
        input=load.linear(weights.input),
        output=load.linear(weights.output),
        is_replayable=load.recurrent.is_replayable,
    )
