"""How a model's makers recommend to sample: from its own files, or from the registry.

Small models and tuned ones need it: at a temperature of 1 they babble.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loire.checkpoint.fields import Fields
from loire.checkpoint.registry import PINNED

_GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """Recommendations, by SamplingParams' names, and where they stand; empty if there are none."""

    values: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


def from_generation_config(config: Mapping[str, Any], source: str) -> SamplingDefaults:
    """The recommendations of generation_config.json. Raises CheckpointError for nonsense."""
    found = _checked(Fields(config, source), {name: name for name in _GGUF_KEYS})
    return SamplingDefaults(found, source if found else "")


def from_gguf(metadata: Mapping[str, Any], path: Path) -> SamplingDefaults:
    """Those of a GGUF file, or else of the registry, if it is a file of it.

    Raises CheckpointError for nonsense.
    """
    found = _checked(Fields(metadata, str(path)), _GGUF_KEYS)
    if found:
        return SamplingDefaults(found, f"general.sampling in {path}")
    size = path.stat().st_size
    for model in PINNED.values():
        if (model.file_name, model.num_bytes) == (path.name, size) and model.sampling:
            return SamplingDefaults(model.sampling, f"Loire's own entry for {model.name}")
    return SamplingDefaults()


def for_gguf(defaults: SamplingDefaults) -> dict[str, float]:
    """Metadata that from_gguf() reads; float but for whole numbers of tokens, as GGUF has it."""
    return {
        _GGUF_KEYS[name]: int(value) if name == "top_k" else float(value)
        for name, value in defaults.values.items()
        if name in _GGUF_KEYS
    }


def _checked(fields: Fields, keys: Mapping[str, str]) -> dict[str, float]:
    numbers = {
        "temperature": fields.optional_number(keys["temperature"], low=0.0, high=100.0),
        # GGUF files hold -1, and some configurations 0, for "all".
        "top_k": fields.optional_integer(keys["top_k"], low=-1),
        "top_p": fields.optional_number(keys["top_p"], low=0.0, high=1.0),
        "min_p": fields.optional_number(keys["min_p"], low=0.0, high=1.0),
        "repetition_penalty": fields.optional_number(
            keys["repetition_penalty"], low=0.01, high=100.0
        ),
    }
    # A top_p of 0 would keep nothing; it means the likeliest token.
    return {name: value for name, value in numbers.items() if value is not None} | (
        {"top_p": 1e-9} if numbers["top_p"] == 0.0 else {}
    )
