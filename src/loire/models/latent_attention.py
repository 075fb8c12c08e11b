"""Latent attention, built from its description (loire.checkpoint.latent_attention)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from loire.checkpoint.latent_attention import LatentAttentionDescription, LatentAttentionWeights
from loire.kernels.block_formats import StoredTensor
from loire.kernels.interface import (
    AttentionPlan,
    AttentionShape,
    Backend,
    FlatBatch,
    Heads,
    LayerCache,
    Linear,
    RotaryTable,
    StateCache,
    Weight,
)
from loire.models.adaptable import AdaptableLatents
from loire.models.decoder import Remembered
from loire.models.layer_loader import LayerLoader, pairs_apart, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Attention of all query heads over one vector per token: the rotated key, then the latent.

    It remembers that vector; what is left are queries of its size.
    """

    shape: AttentionShape
    """head_dim: of that vector, of which rope_dim come first."""
    rope_dim: int
    query_down: Linear | None
    """To what queries are made of; None: the hidden state."""
    query_norm: Tensor | None
    query: Linear
    """To queries: each head's part without rotation, then each head's with it."""
    latent: Linear
    """To the latent, then the key that is rotated."""
    latent_norm: Tensor
    norm_eps: float
    keys: Heads
    """From queries to the latent's size."""
    values: Heads
    """From the latent's size to values."""
    key_dim: int
    output: Linear
    rotary: RotaryTable

    @property
    def is_replayable(self) -> bool:
        """Always."""
        return True

    def remember(
        self,
        x: Tensor,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, H, D] of x [T, E], whose latents and rotated keys are in the cache afterwards."""
        assert isinstance(cache, LayerCache)
        given, heads, rope_dim = x, self.shape.num_heads, self.rope_dim
        if self.query_down is not None and self.query_norm is not None:
            given = self.query_down(x, batch)
            given = backend.pointwise.rms_norm(given, self.query_norm, self.norm_eps)
        plain, turned = self.query(given, batch).split(
            (heads * self.key_dim, heads * rope_dim), dim=1
        )
        queries = backend.attention.store_latents(
            self.latent(x, batch),
            turned,
            self.latent_norm,
            self.norm_eps,
            self.rotary,
            batch,
            cache,
        )
        self.keys(plain.unflatten(1, (heads, -1)), queries[..., rope_dim:], batch)
        return queries

    def recall(
        self,
        remembered: Remembered,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, E] of queries [T, H, D], with a batch and a plan of these."""
        assert isinstance(remembered, Tensor)
        assert isinstance(cache, LayerCache)
        assert plan is not None
        heads = self.shape.num_heads
        attended = backend.attention.attend(remembered, cache, plan, self.shape)
        # (Rotated keys have been weighed too, as they lie among the values; nobody needs them.)
        latents = attended.unflatten(1, (heads, -1))[..., self.rope_dim :]
        return self.output(self.values(latents, batch=batch).flatten(1), batch)

    def bytes_per_step(self, num_tokens: int) -> int:
        """All of them."""
        return self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all products."""
        products = (
            self.query_down,
            self.query,
            self.latent,
            self.keys,
            self.values,
            self.output,
        )
        return sum(product.weight_bytes for product in products if product is not None)


def latent_attention(
    description: LatentAttentionDescription, weights: LatentAttentionWeights, load: LayerLoader
) -> LatentAttention:
    """With its weights."""
    rope_dim, rank, query_down = description.rope_dim, description.rank, weights.query_down
    order = pairs_apart(rope_dim) if description.interleaved else torch.arange(rope_dim)
    latent_order = torch.cat([torch.arange(rank), rank + order])
    keys, values = _keys_and_values(description, weights, load)
    return LatentAttention(
        shape=AttentionShape(
            num_heads=description.num_heads,
            num_kv_heads=1,
            head_dim=description.kept_dim,
            scale=description.scale,
        ),
        rope_dim=rope_dim,
        query_down=None if query_down is None else load.linear(query_down),
        query_norm=None if weights.query_norm is None else load.vector(weights.query_norm),
        query=load.linear(weights.query, order=_query_order(description, order)),
        latent=load.linear(weights.latent, order=latent_order),
        latent_norm=load.vector(weights.latent_norm),
        norm_eps=description.norm_eps,
        keys=keys,
        values=values,
        key_dim=description.key_dim,
        output=load.linear(weights.output),
        rotary=load.rotary(description.rope),
    )


def _query_order(description: LatentAttentionDescription, order: Tensor) -> Tensor:
    """Of the rows of queries: those of all heads without rotation, then those with it."""
    size = description.key_dim + description.rope_dim
    starts = torch.arange(description.num_heads)[:, None] * size
    plain = starts + torch.arange(description.key_dim)
    turned = starts + description.key_dim + order
    return torch.cat([plain.flatten(), turned.flatten()])


def _keys_and_values(
    description: LatentAttentionDescription, weights: LatentAttentionWeights, load: LayerLoader
) -> tuple[Heads, Heads]:
    """Products of each head: from its query to the latent, from the latent to its value."""
    key_dim, value_dim, rank = description.key_dim, description.value_dim, description.rank
    keys: list[Weight] = []
    values: list[Weight] = []
    if weights.keys_values is not None:
        origin, size = (weights.keys_values,) * 2, key_dim + value_dim
        [both] = load.matrix(weights.keys_values)
        for first in range(0, description.num_heads * size, size):
            rows = rows_of(both, first, first + key_dim)
            numbers = rows.values().to(load.dtype) if isinstance(rows, StoredTensor) else rows
            keys.append(numbers.T.contiguous())
            values.append(rows_of(both, first + key_dim, first + size))
    else:
        assert weights.keys is not None
        assert weights.values is not None
        origin = weights.keys, weights.values
        [all_keys], [all_values] = load.matrix(weights.keys), load.matrix(weights.values)
        for head in range(description.num_heads):
            keys.append(rows_of(all_keys, head * rank, head * rank + rank))
            values.append(rows_of(all_values, head * value_dim, head * value_dim + value_dim))
    of_keys = [load.linear_of(origin[0], [part], None) for part in keys]
    of_values = [load.linear_of(origin[1], [part], None) for part in values]
    name = f"{weights.output.name.removesuffix('.o_proj')}.kv_b_proj"
    load.adapts(name, AdaptableLatents(of_keys, of_values))
    return load.kernels.heads(of_keys), load.kernels.heads(of_values)
