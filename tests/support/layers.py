"""Looking into the layers of a description, and changing them all."""

from dataclasses import replace

from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.feed_forward import GatedMLPDescription
from loire.checkpoint.mixers import AttentionDescription


def attention(description: ModelDescription, layer: int = 0) -> AttentionDescription:
    """Of a layer that has it."""
    mixer = description.layers[layer].mixer
    assert isinstance(mixer, AttentionDescription)
    return mixer


def mlp(description: ModelDescription, layer: int = 0) -> GatedMLPDescription:
    """Of a layer that has it."""
    feed_forward = description.layers[layer].feed_forward
    assert isinstance(feed_forward, GatedMLPDescription)
    return feed_forward


def windows(description: ModelDescription) -> tuple[int | None, ...]:
    """Of all layers."""
    return tuple(attention(description, i).window for i in range(description.num_layers))


def with_attention(description: ModelDescription, **changes: object) -> ModelDescription:
    """Other settings in the attention of every layer; a tuple gives each layer its own."""

    def changed(index: int, layer: LayerDescription) -> LayerDescription:
        own = {k: v[index] if isinstance(v, tuple) else v for k, v in changes.items()}
        return replace(layer, mixer=replace(layer.mixer, **own))  # type: ignore[type-var, arg-type]

    layers = tuple(changed(i, layer) for i, layer in enumerate(description.layers))
    return replace(description, layers=layers)


def with_mlp(description: ModelDescription, **changes: object) -> ModelDescription:
    """Other settings in the MLP of every layer."""

    def changed(layer: LayerDescription) -> LayerDescription:
        return replace(layer, feed_forward=replace(layer.feed_forward, **changes))  # type: ignore[type-var, arg-type]

    return replace(description, layers=tuple(map(changed, description.layers)))
