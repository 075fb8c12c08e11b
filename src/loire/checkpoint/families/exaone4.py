"""EXAONE 4: norms after each part; in its larger models windows, and layers that see everything
without being told positions (NoPE)."""

from collections.abc import Sequence
from typing import Any

from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families import config_fields, gguf_fields
from loire.checkpoint.families.common import Common, dense, without_rope
from loire.checkpoint.families.family import Family, GGUFFamily
from loire.checkpoint.families.gguf_fields import GGUFSource
from loire.checkpoint.fields import Fields

PATTERN = 4


def _described(common: Common, windows: Sequence[int | None]) -> ModelDescription:
    description = dense(common, windows, norms="after", qk_norm=True)
    if not any(windows):
        return description
    return without_rope(description, [i for i, window in enumerate(windows) if window is None])


def _exaone4(fields: Fields) -> ModelDescription:
    fields = config_fields.with_defaults(
        fields, bos_token_id=0, eos_token_id=2, sliding_window=4096
    )
    common = config_fields.common(fields, "exaone4", kv_heads=32, eps=1e-5)
    return _described(common, _windows(fields))


def _windows(fields: Fields) -> tuple[int | None, ...]:
    if fields.values["sliding_window"] is None:
        return (None,) * config_fields.num_layers(fields)
    pattern: Any = fields.values.get("sliding_window_pattern", PATTERN)
    if isinstance(pattern, str):
        if not pattern or set(pattern) - {"L", "G"}:
            raise fields.wrong("sliding_window_pattern", pattern, "letters L and G, or a number")
        return config_fields.windows(fields, lambda i: pattern[i % len(pattern)] == "L")
    period = fields.integer("sliding_window_pattern", PATTERN)
    return config_fields.windows(fields, lambda i: (i + 1) % period != 0)


def _gguf(source: GGUFSource) -> ModelDescription:
    # Layers that predict several tokens stand behind the others.
    num_layers = source.num_layers - source.own.integer("nextn_predict_layers", 0, low=0)
    windows = gguf_fields.windows(source, period=PATTERN)
    return _described(gguf_fields.common(source), windows[:num_layers])


EXAONE4 = Family(
    model_type="exaone4",
    describe=_exaone4,
    gguf=GGUFFamily(architecture="exaone4", describe=_gguf, names=gguf_fields.NORMS_AROUND),
)
