"""The linear layers of a model that adapters may be for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loire.checkpoint.description import LayerDescription, LayerWeights, ModelDescription
from loire.checkpoint.mixers import AttentionDescription
from loire.checkpoint.recurrent_mixers import GatedDeltaNetDescription
from loire.checkpoint.weights import Matrix, matrices


@dataclass(frozen=True, slots=True)
class AdapterTarget:
    """Some outputs of a product, under the name that a module of them has."""

    product: str
    """Name of the weight (loire.checkpoint.weights.Matrix) whose product it is."""
    first: int
    """The first output that is the module's."""
    outputs: int
    inputs: int


def adapter_targets(description: ModelDescription) -> Mapping[str, AdapterTarget]:
    """By names of modules, as in Hugging Face's models.

    Experts have none, nor has latent attention, nor have weights whose rows are put into another
    order: queries, keys and values of attention with an output gate or rotary pairs side by side,
    what Qwen3-Next's recurrent mixers take in, and all of Qwen3.5's in GGUF files; nor have other
    recurrent mixers.
    """
    weights = description.weights()
    found: dict[str, AdapterTarget] = {}
    for layer, own in zip(description.layers, weights.layers, strict=True):
        for weight in _adaptable(layer, own):
            found[weight.name] = AdapterTarget(weight.name, 0, weight.outputs, weight.inputs)
            first = 0
            for part, rows in zip(weight.parts, weight.rows, strict=False):
                found[part] = AdapterTarget(weight.name, first, rows, weight.inputs)
                first += rows
    if weights.per_layer is not None:
        shared = weights.per_layer.projection
        found[shared.name] = AdapterTarget(shared.name, 0, shared.outputs, shared.inputs)
    head = weights.embedding if weights.head is None else weights.head
    found["lm_head"] = AdapterTarget("lm_head", 0, head.outputs, head.inputs)
    return found


def _adaptable(layer: LayerDescription, weights: LayerWeights) -> Iterator[Matrix]:
    mixer = layer.mixer
    if isinstance(mixer, AttentionDescription):
        moved = mixer.output_gate or mixer.pairs_together
        ordered = [matrix for matrix in matrices(weights.mixer) if not moved]
        yield from ordered or [m for m in matrices(weights.mixer) if m.name.endswith(".o_proj")]
    if isinstance(mixer, GatedDeltaNetDescription) and not mixer.heads_in_turn:
        yield from (matrix for matrix in matrices(weights.mixer) if not matrix.interleaved)
    for matrix in matrices((weights.feed_forward, weights.per_layer_input)):
        if ".experts." not in matrix.name:
            yield matrix
