"""The decoder: every supported family is this one transformer with other settings.

Shapes: T tokens of the flat batch, E hidden size, V vocabulary. The operations are the backend's;
nothing here knows a device, a weight format or a batching policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from loire.checkpoint.description import ModelDescription
from loire.kernels.interface import (
    AttentionPlan,
    AttentionShape,
    Backend,
    ComputeStep,
    FlatBatch,
    HeadNorms,
    LayerCache,
    Linear,
    RotaryTable,
    Wanted,
)


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention of one layer."""

    shape: AttentionShape
    qkv: Linear
    output: Linear
    norms: HeadNorms | None
    rotary: RotaryTable

    def queries(self, x: Tensor, backend: Backend, batch: FlatBatch, cache: LayerCache) -> Tensor:
        """[T, H, D] of x [T, E], whose keys and values are in the cache afterwards."""
        return backend.rotate_and_store(
            self.qkv(x), self.shape, self.norms, self.rotary, batch, cache
        )

    def attend(
        self, queries: Tensor, backend: Backend, plan: AttentionPlan, cache: LayerCache
    ) -> Tensor:
        """[T, E] of queries [T, H, D], with a plan for these."""
        return self.output(backend.attend(queries, cache, plan, self.shape))


@dataclass(frozen=True, slots=True)
class MLP:
    """Gated feed-forward part of one layer."""

    gate_up: Linear
    """Gated: [T, E] to [T, I]."""
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """[T, E] to [T, E]."""
        return self.down(self.gate_up(x))


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer. Norm weights are float32 [E], offset included."""

    attention: Attention
    mlp: MLP
    norm_before_attention: Tensor
    norm_before_mlp: Tensor
    norm_after_attention: Tensor | None = None
    norm_after_mlp: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerStack:
    """The embedding, all layers and the final norm."""

    backend: Backend
    embedding: Tensor
    """[V, E] in the model's dtype."""
    embedding_scale: float
    layers: tuple[Layer, ...]
    final_norm: Tensor
    eps: float

    def __call__(
        self,
        caches: Sequence[LayerCache],
        token_ids: Tensor,
        batch: FlatBatch,
        plan: AttentionPlan,
        wanted: Wanted | None,
    ) -> Tensor:
        """Hidden states of all tokens [T, E], or of the wanted.

        By nothing but the backend's operations, where all are wanted: see Backend.capture.
        """
        backend, eps = self.backend, self.eps
        # The residual stream stays in float32: rounding it to bfloat16 twice per layer costs a
        # small model near-ties, and it is no more than E numbers per token.
        first_norm = self.layers[0].norm_before_attention
        x, residual = backend.embed(
            token_ids, self.embedding, self.embedding_scale, first_norm, eps
        )
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            queries = layer.attention.queries(x, backend, batch, cache)
            if wanted is not None and index + 1 == len(self.layers):
                if wanted.plan is None:
                    return x[:0]
                queries, residual = queries[wanted.tokens], residual[wanted.tokens]
                plan = wanted.plan
            x = layer.attention.attend(queries, backend, plan, cache)
            if layer.norm_after_attention is not None:
                x = backend.rms_norm(x, layer.norm_after_attention, eps)
            x, residual = backend.add_rms_norm(x, residual, layer.norm_before_mlp, eps)
            x = layer.mlp(x)
            if layer.norm_after_mlp is not None:
                x = backend.rms_norm(x, layer.norm_after_mlp, eps)
            x, residual = backend.add_rms_norm(x, residual, self._norm_after(index), eps)
        return x

    def _norm_after(self, index: int) -> Tensor:
        """The norm that follows layer index: the next layer's first, or the final one."""
        if index + 1 < len(self.layers):
            return self.layers[index + 1].norm_before_attention
        return self.final_norm


class Decoder:
    """A loaded model. forward() gives hidden states, logits() turns some of them into logits."""

    def __init__(
        self,
        description: ModelDescription,
        backend: Backend,
        embedding: Tensor,
        layers: Sequence[Layer],
        final_norm: Tensor,
        head: Linear,
    ) -> None:
        self.description = description
        self.backend = backend
        self.embedding = embedding
        self.layers = tuple(layers)
        self.head = head
        # Rounded to the model's dtype, as the models were trained with it.
        scale = float(torch.tensor(description.embedding_scale, dtype=embedding.dtype))
        self._stack = LayerStack(
            backend, embedding, scale, self.layers, final_norm, description.norm_eps
        )
        self._captured: tuple[Sequence[LayerCache], ComputeStep] | None = None

    @property
    def bytes_per_step(self) -> int:
        """Bytes of weights that every step reads: all but the embedding, of which it reads rows."""
        linears = [self.head]
        for layer in self.layers:
            linears += [layer.attention.qkv, layer.attention.output]
            linears += [layer.mlp.gate_up, layer.mlp.down]
        return sum(linear.weight_bytes for linear in linears)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as held in memory."""
        shared = getattr(self.head, "weight", None) is self.embedding
        embedding = 0 if shared else self.embedding.numel() * self.embedding.element_size()
        return self.bytes_per_step + embedding

    def forward(
        self,
        token_ids: Tensor,
        batch: FlatBatch,
        plan: AttentionPlan,
        caches: Sequence[LayerCache],
        wanted: Wanted | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, [T, E] of token_ids (int64 [T]) or of the wanted."""
        if self._captured is None or self._captured[0] is not caches:
            self._captured = caches, self.backend.capture(partial(self._stack, caches))
        return self._captured[1](token_ids, batch, plan, wanted)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [L, V] of hidden states [L, E]."""
        logits = self.head(hidden, wide=True)
        cap = self.description.logit_softcap
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits
