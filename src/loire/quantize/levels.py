"""The formats that a weight can be rounded to, as levels: whole numbers times a scale."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from loire.checkpoint.formats import BLOCK_FORMATS, WeightFormat
from loire.kernels.block_formats import PALETTES


@dataclass(frozen=True, slots=True)
class Levels:
    """One format.

    Attributes:
        values: what codes 0, 1, ... stand for, ascending.
    """

    format: WeightFormat
    values: tuple[int, ...]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.format.block_elements

    @property
    def bits(self) -> float:
        """Per weight, scales included."""
        return self.format.bits_per_element

    @property
    def largest(self) -> int:
        """The largest magnitude of both signs."""
        return min(-self.values[0], self.values[-1])

    @property
    def _is_uniform(self) -> bool:
        return all(upper - lower == 1 for lower, upper in pairwise(self.values))

    def nearest(self, scaled: Tensor) -> Tensor:
        """int64 codes of float32 numbers [...]."""
        if self._is_uniform:
            lowest, highest = self.values[0], self.values[-1]
            return scaled.round().clamp(lowest, highest).sub_(lowest).long()
        # (Comparisons with each border are several times faster than torch.bucketize.)
        codes = torch.zeros(scaled.shape, dtype=torch.uint8)
        for lower, upper in pairwise(self.values):
            codes += scaled > (lower + upper) / 2
        return codes.long()

    def numbers(self, codes: Tensor) -> Tensor:
        """float32 [...] of codes."""
        levels = torch.tensor(self.values, dtype=torch.float32)
        return levels[codes]

    def pack(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Blocks, uint8 [rows, bytes], of codes [rows, groups, group] and scales [rows, groups]."""
        head = scales.half()[..., None].view(torch.uint8)
        return torch.cat([head, _PACKERS[self.format.name](codes.to(torch.uint8))], -1).flatten(1)


def _halves(codes: Tensor) -> Tensor:
    """Codes of four bits [..., n], the first half of each 32 in the lower halves of bytes."""
    parts = codes.unflatten(-1, (-1, 2, 16))
    both: Tensor = parts[..., 0, :] | parts[..., 1, :] << 4
    return both.flatten(-2)


def _quarters(codes: Tensor) -> Tensor:
    """Codes of two bits [..., n], four of each 32 in a byte."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    shifted = codes.unflatten(-1, (-1, 4, 8)) << shifts
    packed: Tensor = shifted.sum(-2, dtype=torch.uint8)
    return packed.flatten(-2)


def _bits(codes: Tensor) -> Tensor:
    """Single bits [..., n], eight in a byte, the first the lowest."""
    shifted = codes.unflatten(-1, (-1, 8)) << torch.arange(8, dtype=torch.uint8)
    packed: Tensor = shifted.sum(-1, dtype=torch.uint8)
    return packed


def _pack_p3(codes: Tensor) -> Tensor:
    return torch.cat([_quarters(codes & 3), _bits(codes >> 2)], dim=-1)


def _pack_q5_0(codes: Tensor) -> Tensor:
    return torch.cat([_bits(codes >> 4), _halves(codes & 15)], dim=-1)


def _pack_q8_0(codes: Tensor) -> Tensor:
    return (codes - 127).view(torch.uint8)  # code 0 is -127


_PACKERS = {
    "P2": _quarters,
    "P3": _pack_p3,
    "P4": _halves,
    "Q5_0": _pack_q5_0,
    "Q8_0": _pack_q8_0,
}

LEVELS: tuple[Levels, ...] = (
    Levels(BLOCK_FORMATS["P2"], PALETTES[2]),
    Levels(BLOCK_FORMATS["P3"], PALETTES[3]),
    Levels(BLOCK_FORMATS["P4"], PALETTES[4]),
    Levels(BLOCK_FORMATS["Q5_0"], tuple(range(-16, 16))),
    Levels(BLOCK_FORMATS["Q8_0"], tuple(range(-127, 128))),
)
"""With ascending bits."""


def levels_for(in_features: int) -> tuple[Levels, ...]:
    """Those whose groups fill rows of so many inputs."""
    return tuple(levels for levels in LEVELS if in_features % levels.group == 0)
