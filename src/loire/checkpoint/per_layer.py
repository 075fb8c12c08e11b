"""Embeddings that come per layer (Gemma 3n, Gemma 4).

Beside its embedding every token has a small vector for each layer: looked up in a table of its own,
added to a projection of the embedding. At its end a layer lets it through a gate that the hidden
states open, and adds what a projection makes of it.
"""

from dataclasses import dataclass

from loire.checkpoint.feed_forward import PlainActivation
from loire.checkpoint.weights import Matrix, Place, Vector


@dataclass(frozen=True, slots=True)
class PerLayerEmbeddingWeights:
    """What all layers share."""

    table: Matrix
    projection: Matrix
    norm: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerEmbeddingDescription:
    """The vectors of all layers, side by side: (norm(projection(e)) + size ** 0.5 * table[token])
    * 2 ** -0.5, where e is the embedding, scaled."""

    size: int
    """Numbers per token and layer."""
    vocab_size: int

    def weights(self, place: Place, num_layers: int) -> PerLayerEmbeddingWeights:
        """Names as in Hugging Face's Gemma 4."""
        rows = num_layers * self.size
        return PerLayerEmbeddingWeights(
            table=Matrix(
                name=f"{place.prefix}embed_tokens_per_layer",
                rows=(self.vocab_size,),
                inputs=rows,
                role="embedding",
            ),
            projection=Matrix(
                name=f"{place.prefix}per_layer_model_projection",
                rows=(rows,),
                inputs=place.hidden_size,
            ),
            norm=place.norm("per_layer_projection_norm", self.size),
        )


@dataclass(frozen=True, slots=True)
class PerLayerInputWeights:
    """Of one layer."""

    gate: Matrix
    projection: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerInputDescription:
    """projection(activation(gate(x)) * v), of hidden states x as they are and the layer's own
    vectors v."""

    size: int
    activation: PlainActivation

    @property
    def activation_elements(self) -> int:
        """The gate, the vectors and their product."""
        return 3 * self.size

    def weights(self, place: Place) -> PerLayerInputWeights:
        """Names as in Hugging Face's Gemma 4."""
        return PerLayerInputWeights(
            gate=Matrix(
                name=f"{place.prefix}per_layer_input_gate",
                rows=(self.size,),
                inputs=place.hidden_size,
            ),
            projection=Matrix(
                name=f"{place.prefix}per_layer_projection",
                rows=(place.hidden_size,),
                inputs=self.size,
            ),
        )
