"""What config.json and GGUF files share: settings of models whose layers are alike."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from loire.checkpoint.description import ModelDescription, dense_layers

MAX_LAYERS = 10_000
MAX_EXPERTS = 4096


class Common(NamedTuple):
    """Settings of ModelDescription and of dense_layers()."""

    model: dict[str, Any]
    layer: dict[str, Any]


def dense(common: Common, windows: Sequence[int | None], **changes: Any) -> ModelDescription:
    """Layers that are alike but for their windows; changes are settings of dense_layers()."""
    layers = dense_layers(windows, **{**common.layer, **changes})
    return ModelDescription(**common.model, layers=layers)
