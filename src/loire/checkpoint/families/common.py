"""What config.json and GGUF files share: settings of models whose layers are alike."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from loire.checkpoint.description import LayerDescription, ModelDescription, dense_layers
from loire.checkpoint.mixers import NO_ROPE, AttentionDescription

MAX_LAYERS = 10_000
MAX_EXPERTS = 4096
MAX_HEADS = 2**16
"""Of recurrent mixers: each head has an array of its own in a sequence's state."""


class Common(NamedTuple):
    """Settings of ModelDescription and of dense_layers()."""

    model: dict[str, Any]
    layer: dict[str, Any]


def dense(common: Common, windows: Sequence[int | None], **changes: Any) -> ModelDescription:
    """Layers that are alike but for their windows; changes are settings of dense_layers()."""
    layers = dense_layers(windows, **{**common.layer, **changes})
    return ModelDescription(**common.model, layers=layers)


def without_rope(description: ModelDescription, indices: Collection[int]) -> ModelDescription:
    """The same, but that these layers are not told positions."""

    def changed(layer: LayerDescription) -> LayerDescription:
        assert isinstance(layer.mixer, AttentionDescription)
        return replace(layer, mixer=replace(layer.mixer, rope=NO_ROPE))

    layers = enumerate(description.layers)
    return replace(
        description,
        layers=tuple(changed(layer) if i in indices else layer for i, layer in layers),
    )
