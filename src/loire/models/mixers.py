"""Mixers of loire.models.decoder, built from their descriptions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from loire.checkpoint.mixers import (
    AttentionDescription,
    AttentionWeights,
    MixerDescription,
    QueryGrowth,
)
from loire.kernels.interface import (
    AttentionPlan,
    AttentionShape,
    Backend,
    FlatBatch,
    HeadNorms,
    LayerCache,
    Linear,
    RotaryTable,
)
from loire.models.decoder import Mixer
from loire.models.layer_loader import LayerLoader


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention of one layer. It remembers keys and values; what is left are queries."""

    shape: AttentionShape
    qkv: Linear
    output: Linear
    norms: HeadNorms | None
    rotary: RotaryTable
    query_factors: Tensor | None = None
    """What queries are multiplied by, by position: float32 [P, 1, 1]; None for nothing."""

    @property
    def is_replayable(self) -> bool:
        """Factors of queries are PyTorch's work."""
        return self.query_factors is None

    def remember(self, x: Tensor, backend: Backend, batch: FlatBatch, cache: LayerCache) -> Tensor:
        """[T, H, D] of x [T, E], whose keys and values are in the cache afterwards."""
        queries = backend.attention.rotate_and_store(
            self.qkv(x, batch), self.shape, self.norms, self.rotary, batch, cache
        )
        if self.query_factors is None:
            return queries
        return (queries * self.query_factors[batch.positions]).to(queries.dtype)

    def recall(
        self,
        remembered: Tensor,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan,
        cache: LayerCache,
    ) -> Tensor:
        """[T, E] of queries [T, H, D], with a batch and a plan of these."""
        attended = backend.attention.attend(remembered, cache, plan, self.shape)
        return self.output(attended, batch)

    def bytes_per_step(self, num_tokens: int) -> int:
        """All of them."""
        return self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of both products."""
        return self.qkv.weight_bytes + self.output.weight_bytes


def build_mixer(description: MixerDescription, weights: object, load: LayerLoader) -> Mixer:
    """The mixer of a description with its weights."""
    if isinstance(description, AttentionDescription) and isinstance(weights, AttentionWeights):
        return _attention(description, weights, load)
    raise TypeError(f"no mixer is built from {type(description).__name__}")


def _attention(
    description: AttentionDescription, weights: AttentionWeights, load: LayerLoader
) -> Attention:
    norms = None
    if weights.query_norm is not None:
        query_weight = load.vector(weights.query_norm)
        key_weight = query_weight  # not looked at where keys are another layer's
        if weights.key_norm is not None:
            key_weight = load.vector(weights.key_norm)
        norms = HeadNorms(query_weight, key_weight, load.norm_eps)
    return Attention(
        shape=AttentionShape(
            num_heads=description.num_heads,
            num_kv_heads=description.num_kv_heads,
            head_dim=description.head_dim,
            scale=description.scale,
            window=description.window,
            softcap=description.softcap,
            stores=description.cache_of is None,
        ),
        qkv=load.linear(weights.qkv),
        output=load.linear(weights.output),
        norms=norms,
        rotary=load.rotary(description.rope),
        query_factors=_factors(description.query_growth, load),
    )


def _factors(growth: QueryGrowth | None, load: LayerLoader) -> Tensor | None:
    if growth is None:
        return None
    positions = torch.arange(load.rotary.num_positions, dtype=torch.float32)
    factors = 1 + growth.beta * torch.log(1 + torch.floor(positions / growth.period))
    return factors[:, None, None].to(load.rotary.device)
