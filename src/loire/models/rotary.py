"""Tables of cos and sin for rotary position embedding and its ways of stretching the window."""

import math

import torch
from torch import Tensor

from loire.checkpoint.mixers import RopeDescription
from loire.kernels.interface import RotaryTable


def rotary_table(rope: RopeDescription, num_positions: int, device: torch.device) -> RotaryTable:
    """cos and sin for positions 0 .. num_positions - 1, float32 [num_positions, rotary_dim / 2].

    LongRoPE takes its short frequencies if the window is no longer than the original one, else its
    long ones, for the whole run: keys in the cache are rotated already, so it cannot change later.
    """
    frequencies = inverse_frequencies(rope, num_positions)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies[None]
    scale = rope.attention_factor if rope.attention_factor is not None else 1.0
    return RotaryTable(cos=(angles.cos() * scale).to(device), sin=(angles.sin() * scale).to(device))


def inverse_frequencies(rope: RopeDescription, num_positions: int) -> Tensor:
    """Radians per position, float32 [rotary_dim / 2].

    Computed in float32 in the order that transformers uses, so that tokens agree with it.
    """
    if rope.scaling == "off":
        return torch.zeros(rope.rotary_dim // 2)
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    plain = 1.0 / (rope.theta**exponents)
    if rope.frequency_divisors:
        return plain / torch.tensor(rope.frequency_divisors)
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        return _llama3(rope, plain)
    if rope.scaling == "yarn":
        return _yarn(rope, plain)
    if rope.scaling == "longrope":
        long = num_positions > rope.original_max_positions
        factors = torch.tensor(rope.long_factors if long else rope.short_factors)
        return 1.0 / (factors * rope.theta**exponents)
    return plain


def _llama3(rope: RopeDescription, plain: Tensor) -> Tensor:
    """Llama 3.1: long wavelengths are divided by the factor, the band between is blended."""
    low_wavelength = rope.original_max_positions / rope.low_freq_factor
    high_wavelength = rope.original_max_positions / rope.high_freq_factor
    wavelength = 2 * math.pi / plain
    scaled = torch.where(wavelength > low_wavelength, plain / rope.factor, plain)
    smooth = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * scaled / rope.factor + smooth * scaled
    in_band = ~(wavelength < high_wavelength) & ~(wavelength > low_wavelength)
    return torch.where(in_band, blended, scaled)


def _yarn(rope: RopeDescription, plain: Tensor) -> Tensor:
    """Peng et al. 2023: low frequencies are interpolated, high ones kept, a ramp between."""
    dim = rope.rotary_dim

    def dimension_of(rotations: float) -> float:
        positions = rope.original_max_positions / (rotations * 2 * math.pi)
        return dim * math.log(positions) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate_band:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - ramp
    return plain / rope.factor * (1 - kept) + plain * kept
