"""Embeddings that come per layer, of loire.models.decoder: see loire.checkpoint.per_layer."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from loire.checkpoint.feed_forward import PlainActivation
from loire.checkpoint.per_layer import PerLayerInputDescription, PerLayerInputWeights
from loire.kernels.interface import Backend, FlatBatch, Linear, Table
from loire.models.layer_loader import LayerLoader


@dataclass(frozen=True, slots=True)
class PerLayerEmbedding:
    """The vectors of all layers."""

    size: int
    """Of one layer's."""
    table: Table
    """[V, layers * size]."""
    projection: Linear
    """[T, E] to [T, layers * size]."""
    norm: Tensor
    """float32 [size]."""
    norm_eps: float
    """As if what is normalised had been multiplied by E ** -0.5."""

    def __call__(
        self, token_ids: Tensor, embedded: Tensor, backend: Backend, batch: FlatBatch
    ) -> Tensor:
        """float32 [T, layers * size] of tokens and their embeddings [T, E], scaled."""
        pointwise = backend.pointwise
        _, looked_up = pointwise.embed(token_ids, self.table, self.size**0.5, None, self.norm_eps)
        projected = self.projection(embedded, batch).view(-1, self.size)
        normed = pointwise.rms_norm(projected, self.norm, self.norm_eps)
        rows = looked_up.view(-1, self.size)
        _, both = pointwise.add_rms_norm(normed, rows, None, self.norm_eps, 2**-0.5)
        return both.view(looked_up.shape)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its weights."""
        table = self.table
        held = table.nbytes if isinstance(table, Tensor) else table.weight_bytes
        return held + self.projection.weight_bytes


@dataclass(frozen=True, slots=True)
class PerLayerInput:
    """A layer's use of its vectors."""

    gate: Linear
    """[T, E] to [T, size]."""
    projection: Linear
    """[T, size] to [T, E]."""
    activation: PlainActivation

    is_replayable: ClassVar[bool] = True

    def __call__(self, x: Tensor, vectors: Tensor, backend: Backend, batch: FlatBatch) -> Tensor:
        """[T, E] of hidden states [T, E], not normalised, and vectors, float32 [T, size]."""
        opened = backend.pointwise.gated(self.gate(x, batch), vectors, self.activation)
        return self.projection(opened, batch)

    def bytes_per_step(self, num_tokens: int) -> int:
        """All of them."""
        return self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of both products."""
        return self.gate.weight_bytes + self.projection.weight_bytes


def build_per_layer_input(
    description: PerLayerInputDescription, weights: PerLayerInputWeights, load: LayerLoader
) -> PerLayerInput:
    """The part of a description with its weights."""
    return PerLayerInput(
        gate=load.linear(weights.gate),
        projection=load.linear(weights.projection),
        activation=description.activation,
    )
