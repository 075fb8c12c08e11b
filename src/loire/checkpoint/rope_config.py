"""Rotary-embedding settings of config.json, in the older and the newer spelling.

Older files have rope_theta and rope_scaling; since transformers 5 both are in rope_parameters,
possibly one set per layer type.
"""

import math
from collections.abc import Mapping
from typing import Any

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.fields import Fields
from loire.checkpoint.mixers import RopeDescription

SUPPORTED = ("default", "linear", "llama3", "yarn", "longrope", "proportional")


def parse_rope(
    config: Fields,
    *,
    head_dim: int,
    max_positions: int,
    default_theta: float,
    layer_type: str | None = None,
) -> RopeDescription:
    """The rotary embedding of one layer type (of all layers where layer_type is None).

    Raises UnsupportedModelError for a kind of scaling that Loire does not know.
    """
    values = _parameters(config, layer_type)
    nested = sorted(key for key, value in values.items() if isinstance(value, Mapping))
    if nested and layer_type is None:
        raise UnsupportedModelError(
            f"{config.source}: rotary settings per kind of layer ({', '.join(nested)}) are not "
            f"supported in this family"
        )
    rope = Fields(values, f"{config.source}, rope parameters")
    theta = rope.number(
        "rope_theta", _given(config, "rope_theta", default_theta), low=1.5, high=1e12
    )
    share = rope.number(
        "partial_rotary_factor",
        _given(config, "partial_rotary_factor", 1.0),
        low=0.01,
        high=1.0,
    )
    rotary_dim = int(head_dim * share)
    if values.get("rope_type") == "proportional":
        return _proportional(rope, theta, head_dim, rotary_dim // 2)
    if rotary_dim % 2:
        raise rope.wrong("partial_rotary_factor", share, f"an even share of {head_dim} dimensions")
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "su" or (kind == "yarn" and "short_factor" in values):
        kind = "longrope"  # what early Phi-3 files call it
    if not isinstance(kind, str) or kind not in SUPPORTED:
        raise UnsupportedModelError(
            f"{config.source}: rotary scaling {kind!r} is not supported; "
            f"Loire knows {', '.join(SUPPORTED)}"
        )
    if kind == "default":
        return RopeDescription(theta=theta, rotary_dim=rotary_dim)
    original = config.optional_integer("original_max_position_embeddings", low=2)
    if original is None:
        original = rope.integer("original_max_position_embeddings", max_positions, low=2)
    if kind == "longrope":
        return _longrope(rope, theta, rotary_dim, original, max_positions)
    factor = rope.number("factor", low=1.0, high=4096.0)
    if kind == "linear":
        return RopeDescription(
            theta=theta,
            rotary_dim=rotary_dim,
            scaling="linear",
            factor=factor,
            original_max_positions=original if _says_original(config, rope) else 0,
        )
    if kind == "llama3":
        low = rope.number("low_freq_factor", low=1e-3, high=1e3)
        high = rope.number("high_freq_factor", low=1e-3, high=1e3)
        if high <= low:
            raise rope.wrong("high_freq_factor", high, f"above low_freq_factor, {low}")
        return RopeDescription(
            theta=theta,
            rotary_dim=rotary_dim,
            scaling="llama3",
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_positions=original,
        )
    return _yarn(rope, theta, rotary_dim, original, factor)


def stretched_window(rope: RopeDescription, positions: int) -> int:
    """Positions that a stretched embedding is made for, where a file calls positions its window.

    Some files say the window before stretching there, some the one after it.
    """
    if rope.scaling == "yarn":
        return max(positions, int(rope.factor * rope.original_max_positions))
    if rope.scaling == "linear":
        return max(positions, int(rope.factor * (rope.original_max_positions or positions)))
    return positions


def stretched_scores(config: Fields) -> float:
    """What attention scores are multiplied by where positions are stretched, in the families that
    have mscale_all_dim (DeepSeek-V2 and later)."""
    rope = Fields(_parameters(config, None), f"{config.source}, rope parameters")
    all_dim = rope.optional_number("mscale_all_dim", low=0.0, high=100.0)
    if rope.values.get("rope_type", rope.values.get("type", "default")) == "default" or not all_dim:
        return 1.0
    return yarn_scale(rope.number("factor", low=1.0, high=4096.0), all_dim) ** 2


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """How much larger YaRN makes what it stretches by a factor (Peng et al. 2023), and DeepSeek's
    weight of it."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _proportional(rope: Fields, theta: float, head_dim: int, rotated: int) -> RopeDescription:
    """Pairs (i, i + head_dim / 2), of which only the first ones are rotated (Gemma 4)."""
    factor = rope.number("factor", 1.0, low=1e-3, high=4096.0)
    still = head_dim // 2 - rotated
    return RopeDescription(
        theta=theta,
        rotary_dim=head_dim,
        frequency_divisors=(factor,) * rotated + (math.inf,) * still,
    )


def _parameters(config: Fields, layer_type: str | None) -> Mapping[str, Any]:
    # Where a file has both spellings, transformers follows the older one.
    for key in ("rope_scaling", "rope_parameters"):
        parameters = config.values.get(key) or {}
        if not isinstance(parameters, Mapping):
            raise config.wrong(key, parameters, "an object")
        if layer_type is not None and key == "rope_parameters":
            parameters = parameters.get(layer_type) or {}
            if not isinstance(parameters, Mapping):
                raise config.wrong(f"{key}, {layer_type}", parameters, "an object")
        if parameters:
            return parameters
    return {}


def _says_original(config: Fields, rope: Fields) -> bool:
    key = "original_max_position_embeddings"
    return config.values.get(key) is not None or rope.values.get(key) is not None


def _given(config: Fields, key: str, default: float) -> Any:
    """What older files say outside the rotary settings; checked where it is used."""
    value = config.values.get(key)
    return default if value is None else value


def _yarn(
    rope: Fields, theta: float, rotary_dim: int, original: int, factor: float
) -> RopeDescription:
    """Peng et al. 2023, "YaRN"; mscale as DeepSeek's configurations spell it."""

    attention_factor = rope.optional_number("attention_factor", low=0.0, high=100.0)
    if attention_factor is None:
        own = rope.optional_number("mscale", low=0.0, high=100.0)
        all_dim = rope.optional_number("mscale_all_dim", low=0.0, high=100.0)
        attention_factor = yarn_scale(factor)
        if own and all_dim:
            attention_factor = yarn_scale(factor, own) / yarn_scale(factor, all_dim)
    return RopeDescription(
        theta=theta,
        rotary_dim=rotary_dim,
        scaling="yarn",
        factor=factor,
        original_max_positions=original,
        beta_fast=rope.number("beta_fast", 32.0, low=1e-3, high=1e4),
        beta_slow=rope.number("beta_slow", 1.0, low=1e-3, high=1e4),
        truncate_band=rope.flag("truncate", True),
        attention_factor=attention_factor,
    )


def _longrope(
    rope: Fields, theta: float, rotary_dim: int, original: int, max_positions: int
) -> RopeDescription:
    """Ding et al. 2024, "LongRoPE"."""
    factors = {key: rope.numbers(key) for key in ("short_factor", "long_factor")}
    for key, values in factors.items():
        if len(values) != rotary_dim // 2 or not all(0 < value < 1e6 for value in values):
            raise rope.wrong(key, list(values), f"a list of {rotary_dim // 2} positive numbers")
    factor = rope.optional_number("factor", low=1e-3, high=4096.0) or max_positions / original
    attention_factor = rope.optional_number("attention_factor", low=0.0, high=100.0)
    if attention_factor is None:
        attention_factor = longrope_attention_factor(factor, original)
    return RopeDescription(
        theta=theta,
        rotary_dim=rotary_dim,
        scaling="longrope",
        original_max_positions=original,
        attention_factor=attention_factor,
        short_factors=factors["short_factor"],
        long_factors=factors["long_factor"],
    )


def longrope_attention_factor(factor: float, original_max_positions: int) -> float:
    """The factor on cos and sin that LongRoPE's authors use where a config gives none."""
    if factor <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(factor) / math.log(original_max_positions))
