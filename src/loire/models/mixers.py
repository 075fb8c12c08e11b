"""Mixers of loire.models.decoder, built from their descriptions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from loire.checkpoint.latent_attention import LatentAttentionDescription, LatentAttentionWeights
from loire.checkpoint.mixers import (
    AttentionDescription,
    AttentionWeights,
    MixerDescription,
    QueryGrowth,
)
from loire.checkpoint.recurrent_mixers import (
    GatedDeltaNetDescription,
    GatedDeltaNetWeights,
    Mamba2Description,
    Mamba2Weights,
    ShortConvolutionDescription,
    ShortConvolutionWeights,
)
from loire.checkpoint.weights import Matrix
from loire.kernels.interface import (
    AttentionPlan,
    AttentionShape,
    Backend,
    FlatBatch,
    HeadNorms,
    LayerCache,
    Linear,
    RotaryTable,
    StateCache,
)
from loire.models.adaptable import AdaptableRows, ProductRows
from loire.models.decoder import Mixer, Remembered
from loire.models.latent_attention import latent_attention
from loire.models.layer_loader import LayerLoader, file_rows, pairs_apart, rows_of
from loire.models.recurrent_mixers import gated_delta_net, mamba2, short_convolution


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention of one layer. It remembers keys and values; what is left are queries."""

    shape: AttentionShape
    qkv: Linear
    output: Linear
    norms: HeadNorms | None
    rotary: RotaryTable
    spanning_norms: HeadNorms | None = None
    """Instead of norms: over all heads at once, weights [H * D] and [K * D]."""
    query_factors: Tensor | None = None
    """What queries are multiplied by, by position: float32 [P, 1, 1]; None for nothing."""

    @property
    def is_replayable(self) -> bool:
        """Factors of queries are PyTorch's work, and so is cutting what is normalised in parts."""
        return self.query_factors is None and self.spanning_norms is None

    def remember(
        self,
        x: Tensor,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, H, D] of x [T, E], whose keys and values are in the cache afterwards."""
        assert isinstance(cache, LayerCache)
        qkv = self.qkv(x, batch)
        if self.spanning_norms is not None:
            qkv = _normed(qkv, self.spanning_norms, backend)
        queries = backend.attention.rotate_and_store(
            qkv, self.shape, self.norms, self.rotary, batch, cache
        )
        if self.query_factors is None:
            return queries
        return (queries * self.query_factors[batch.positions]).to(queries.dtype)

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
        return self.output(self.attend(remembered, backend, plan, cache), batch)

    def attend(
        self,
        queries: Tensor,
        backend: Backend,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, H * D] of queries [T, H, D]."""
        assert isinstance(cache, LayerCache)
        assert plan is not None
        return backend.attention.attend(queries, cache, plan, self.shape)

    def bytes_per_step(self, num_tokens: int) -> int:
        """All of them."""
        return self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of both products."""
        return self.qkv.weight_bytes + self.output.weight_bytes


@dataclass(frozen=True, slots=True)
class GatedAttention:
    """Attention whose result is multiplied by a sigmoid of the layer's input.

    It remembers queries and gates.
    """

    attention: Attention
    gate: Linear

    @property
    def is_replayable(self) -> bool:
        """As attention is."""
        return self.attention.is_replayable

    def remember(
        self,
        x: Tensor,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> tuple[Tensor, Tensor]:
        """Queries [T, H, D] and gates [T, H * D] of x [T, E]."""
        return self.attention.remember(x, backend, batch, plan, cache), self.gate(x, batch)

    def recall(
        self,
        remembered: Remembered,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, E] of queries and gates, with a batch and a plan of these."""
        assert isinstance(remembered, tuple)
        queries, gate = remembered
        attended = self.attention.attend(queries, backend, plan, cache)
        return self.attention.output(backend.pointwise.gate(attended, gate), batch)

    def bytes_per_step(self, num_tokens: int) -> int:
        """All of them."""
        return self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all products."""
        return self.attention.weight_bytes + self.gate.weight_bytes


def build_mixer(description: MixerDescription, weights: object, load: LayerLoader) -> Mixer:
    """The mixer of a description with its weights."""
    if isinstance(description, AttentionDescription) and isinstance(weights, AttentionWeights):
        return _attention(description, weights, load)
    if isinstance(description, GatedDeltaNetDescription) and isinstance(
        weights, GatedDeltaNetWeights
    ):
        return gated_delta_net(description, weights, load)
    if isinstance(description, Mamba2Description) and isinstance(weights, Mamba2Weights):
        return mamba2(description, weights, load)
    if isinstance(description, ShortConvolutionDescription) and isinstance(
        weights, ShortConvolutionWeights
    ):
        return short_convolution(description, weights, load)
    if isinstance(description, LatentAttentionDescription) and isinstance(
        weights, LatentAttentionWeights
    ):
        return latent_attention(description, weights, load)
    raise TypeError(f"no mixer is built from {type(description).__name__}")


def _attention(
    description: AttentionDescription, weights: AttentionWeights, load: LayerLoader
) -> Attention | GatedAttention:
    norms = None
    if weights.query_norm is not None:
        query_weight = load.vector(weights.query_norm)
        key_weight = query_weight  # not looked at where keys are another layer's
        if weights.key_norm is not None:
            key_weight = load.vector(weights.key_norm)
        norms = HeadNorms(query_weight, key_weight, load.norm_eps, description.value_norm)
    elif description.qk_norm:
        ones = load.ones(description.head_dim)
        norms = HeadNorms(ones, ones, load.norm_eps, description.value_norm)
    gate: Linear | None = None
    if weights.query_gate is None:
        qkv = load.linear(weights.qkv, order=_order(description, weights.qkv.outputs))
    else:
        qkv, gate = _with_gate(weights.query_gate, weights.qkv, load)
    attention = Attention(
        shape=AttentionShape(
            num_heads=description.num_heads,
            num_kv_heads=description.num_kv_heads,
            head_dim=description.head_dim,
            scale=description.scale,
            window=description.window,
            softcap=description.softcap,
            values_are_keys=description.values_are_keys,
            sinks=None if weights.sinks is None else load.vector(weights.sinks),
            stores=description.cache_of is None,
        ),
        qkv=qkv,
        output=load.linear(weights.output),
        norms=None if description.norms_span_heads else norms,
        spanning_norms=norms if description.norms_span_heads else None,
        rotary=load.rotary(description.rope),
        query_factors=_factors(description.query_growth, load),
    )
    return attention if gate is None else GatedAttention(attention, gate)


def _normed(qkv: Tensor, norms: HeadNorms, backend: Backend) -> Tensor:
    """[T, (H + 2 * K) * D] with queries and keys normalised, each over all heads."""
    num_queries, num_keys = norms.query_weight.numel(), norms.key_weight.numel()
    queries, keys, values = qkv.split([num_queries, num_keys, num_keys], dim=-1)
    normed = (
        backend.pointwise.rms_norm(part.contiguous(), weight, norms.eps)
        for part, weight in ((queries, norms.query_weight), (keys, norms.key_weight))
    )
    return torch.cat([*normed, values], dim=-1)


def _factors(growth: QueryGrowth | None, load: LayerLoader) -> Tensor | None:
    if growth is None:
        return None
    positions = torch.arange(load.rotary.num_positions, dtype=torch.float32)
    factors = 1 + growth.beta * torch.log(1 + torch.floor(positions / growth.period))
    return factors[:, None, None].to(load.rotary.device)


def _order(description: AttentionDescription, num_rows: int) -> Tensor | None:
    """Of the rows of queries, keys and values, where the engine's is another than the file's."""
    if not description.pairs_together:
        return None
    size, rotary_dim = description.head_dim, description.rope.rotary_dim
    head = torch.cat([pairs_apart(rotary_dim), torch.arange(rotary_dim, size)])
    turned = torch.arange(description.num_heads + description.num_kv_heads)[:, None] * size + head
    return torch.cat([turned.flatten(), torch.arange(turned.numel(), num_rows)])


def _with_gate(query_gate: Matrix, keys_values: Matrix, load: LayerLoader) -> tuple[Linear, Linear]:
    """The products of queries, keys and values, and of gates."""
    size = query_gate.outputs // 2
    found = load.matrix(query_gate)
    if len(found) == 1:
        found = [rows_of(found[0], 0, size), rows_of(found[0], size, 2 * size)]
    queries, gates = found
    bias, others = load.bias(query_gate), load.bias(keys_values)
    qkv_bias = None if bias is None or others is None else torch.cat([bias[:size], others])
    parts = [queries, *load.matrix(keys_values)]
    gate_bias = None if bias is None else bias[size:]
    qkv = load.linear_of(query_gate, parts, qkv_bias)
    gate = load.linear_of(query_gate, [gates], gate_bias)
    rows = file_rows(query_gate)
    if rows is None:  # the file has them apart
        rows = torch.arange(query_gate.outputs)
    queries_gates = ProductRows(qkv, 0, rows[:size]), ProductRows(gate, 0, rows[size:])
    load.adapts(query_gate.name, AdaptableRows(queries_gates))
    load.adapts(keys_values.name, AdaptableRows((ProductRows(qkv, size),)))
    return qkv, gate
