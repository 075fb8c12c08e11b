"""A model's description in a config.json of Loire's own (model_type "loire"), and back.

Directories that `loire quantize` writes say in it what their model is made of, whatever kind of
file that came from, and in which formats their tensors are.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.feed_forward import ExpertsDescription, GatedMLPDescription
from loire.checkpoint.fields import MAX_POSITIONS
from loire.checkpoint.formats import BLOCK_FORMATS, LEAST_LEVEL_ROWS
from loire.checkpoint.latent_attention import LatentAttentionDescription
from loire.checkpoint.mixers import AttentionDescription
from loire.checkpoint.recurrent_mixers import (
    GatedDeltaNetDescription,
    Mamba2Description,
    ShortConvolutionDescription,
)

MODEL_TYPE = "loire"
VERSION = 2
VERSIONS = (1, VERSION)
"""Those that are read: in the first no weight has levels of its own."""
LEVELS_ENDING = "_levels"
"""Of the name of a tensor of levels, behind that of the weight that they are for."""
MOST = 2**28
"""Of any size or count."""
MOST_EXPERTS = 2**14
"""Of a layer."""
WITH_LEVELS = {name for name, fmt in BLOCK_FORMATS.items() if fmt.num_levels}
_NO_COUNTS = ("cache_of",)
_MAYBE_NONE = ("shared_size", "latent_size")
"""Sizes of parts that may not be there."""

_KINDS: Mapping[str, type] = {
    "attention": AttentionDescription,
    "latent_attention": LatentAttentionDescription,
    "gated_delta_net": GatedDeltaNetDescription,
    "mamba2": Mamba2Description,
    "short_convolution": ShortConvolutionDescription,
    "gated_mlp": GatedMLPDescription,
    "experts": ExpertsDescription,
}


def written(description: ModelDescription) -> dict[str, Any]:
    """As plain values."""
    names = {kind: name for name, kind in _KINDS.items()}

    def part(given: object) -> dict[str, Any] | None:
        if given is None:
            return None
        values = msgspec.to_builtins(given)
        # (JSON has no infinity; it is what stands for no limit where nothing is given.)
        finite = {name: value for name, value in values.items() if value != math.inf}
        return {"kind": names[type(given)], **finite}

    plain = {
        field.name: msgspec.to_builtins(getattr(description, field.name))
        for field in fields(description)
        if field.name != "layers"
    }
    plain["layers"] = [
        {
            "mixer": part(layer.mixer),
            "feed_forward": part(layer.feed_forward),
            "norms": layer.norms,
        }
        for layer in description.layers
    ]
    return plain


def read(config: Mapping[str, Any], source: str) -> ModelDescription:
    """From a parsed config.json. Raises UnsupportedModelError for another version, CheckpointError
    for what cannot be a model."""
    if config.get("version") not in VERSIONS:
        raise UnsupportedModelError(
            f"{source} has version {str(config.get('version'))[:20]}; this Loire reads "
            f"{' and '.join(map(str, VERSIONS))}"
        )
    given = config.get("description")
    layers = given.get("layers") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(layers, list) or not layers:
        raise CheckpointError(f"{source} has no description of its layers")
    try:
        made = {
            name: msgspec.convert(given[name], hint)
            for name, hint in get_type_hints(ModelDescription).items()
            if name != "layers" and name in given
        }
        description = ModelDescription(**made, layers=tuple(map(_layer, layers)))
    except (msgspec.ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source} is damaged: {str(error)[:200]}") from error
    _check(description, source)
    return description


def tensors(
    found: Mapping[str, TensorInfo], config: Mapping[str, Any], source: str
) -> dict[str, TensorInfo]:
    """With the formats and shapes that config.json gives those that are stored as bytes."""
    formats = config.get("formats")
    if not isinstance(formats, Mapping):
        raise CheckpointError(f"{source} does not say in which formats its weights are")
    level_rows = config.get("level_rows", {})
    if not isinstance(level_rows, Mapping):
        raise CheckpointError(f"{source}: level_rows is no table of rows by names of weights")
    for name in level_rows:
        if str(formats.get(name)) not in WITH_LEVELS or name not in found:
            raise CheckpointError(
                f"{source} gives levels to {str(name)[:100]!r}, which is no weight with levels"
            )
    levels = {f"{name}{LEVELS_ENDING}" for name in level_rows}
    made = {}
    for name, info in found.items():
        if name in levels:
            continue
        if info.format.name != "U8":
            made[name] = info
            continue
        fmt = BLOCK_FORMATS.get(str(formats.get(name)))
        if fmt is None or len(info.shape) != 2 or info.shape[1] % fmt.block_bytes:
            raise CheckpointError(
                f"{source}: tensor {name!r}, bytes of the shape {list(info.shape)}, is in no known "
                f"format: {str(formats.get(name))[:40]!r}"
            )
        rows, num_bytes = info.shape
        elements = num_bytes // fmt.block_bytes * fmt.block_elements
        made[name] = replace(info, format=fmt, shape=(rows, elements))
        if name in level_rows:
            made[name] = _with_levels(made[name], found, level_rows[name], source)
    return made


def _with_levels(
    info: TensorInfo, found: Mapping[str, TensorInfo], level_rows: object, source: str
) -> TensorInfo:
    """With the tensor that holds what its codes stand for."""
    if type(level_rows) is not int or level_rows <= 0 or level_rows % LEAST_LEVEL_ROWS:
        raise CheckpointError(
            f"{source}: {str(level_rows)[:20]} rows of {info.name!r} share levels, but it must be "
            f"a multiple of {LEAST_LEVEL_ROWS}"
        )
    levels = found.get(f"{info.name}{LEVELS_ENDING}")
    if levels is None:
        raise CheckpointError(f"tensor '{info.name}{LEVELS_ENDING}' is missing")
    wanted = (-(-info.shape[0] // level_rows), info.format.num_levels)
    if levels.format.name != "I8" or levels.shape != wanted:
        raise CheckpointError(
            f"{levels.path}: tensor {levels.name!r} has dtype {levels.format.name} and the shape "
            f"{levels.shape}, but should have I8 and {wanted}"
        )
    return replace(info, levels=levels, level_rows=level_rows)


def _layer(given: Mapping[str, Any]) -> LayerDescription:
    def part(plain: Mapping[str, Any] | None) -> Any:
        if plain is None:
            return None
        values = dict(plain)
        return msgspec.convert(values, _KINDS[values.pop("kind")])

    return LayerDescription(
        mixer=part(given["mixer"]),
        feed_forward=part(given["feed_forward"]),
        norms=msgspec.convert(given["norms"], get_type_hints(LayerDescription)["norms"]),
    )


def _check(description: ModelDescription, source: str) -> None:
    """Sizes are positive and not absurd, so that computing with them is safe."""
    parts: list[object] = [part for layer in description.layers for part in layer.parts]
    routings = [part.routing for part in parts if isinstance(part, ExpertsDescription)]
    parts += routings
    if any(routing.num_experts > MOST_EXPERTS for routing in routings):
        raise CheckpointError(f"{source} has a layer of more than {MOST_EXPERTS:,} experts")
    for part in (description, *parts):
        for name, hint in get_type_hints(type(part)).items():
            value = getattr(part, name)
            counts = type(value) is int and not name.endswith("_id") and name not in _NO_COUNTS
            if value == 0 and name in _MAYBE_NONE:
                continue
            if counts and _is_size(hint) and not 0 < value <= MOST:
                raise CheckpointError(f"{source}: {name} is {value}")
    if description.max_positions > MAX_POSITIONS:
        raise CheckpointError(f"{source}: max_positions is {description.max_positions}")
    for attention in description.attentions:
        if attention.num_heads % attention.num_kv_heads or attention.cache_of is not None:
            raise CheckpointError(f"{source} has an attention that cannot be")
    for part in parts:
        if isinstance(part, GatedDeltaNetDescription):
            heads, groups = part.num_value_heads, part.num_key_heads
        elif isinstance(part, Mamba2Description):
            heads, groups = part.num_heads, part.num_groups
        else:
            continue
        if heads % groups:
            raise CheckpointError(f"{source} has {heads} heads in {groups} groups")


def _is_size(hint: Any) -> bool:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return int in options
