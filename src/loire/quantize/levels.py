"""The formats that a weight can be rounded to, as levels: whole numbers times a scale."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from loire.checkpoint.formats import BLOCK_FORMATS, LEVEL_ROWS, WeightFormat
from loire.kernels.block_formats import IQ4_VALUES, PALETTES, StoredTensor


@dataclass(frozen=True, slots=True)
class Levels:
    """One format.

    Attributes:
        values: what codes 0, 1, ... stand for, ascending.
        group: inputs that share a scale.
        scale_levels: where scales are whole numbers times one in half precision for a block of
            several groups, the least and the largest of them.
        fitted: whether the values are only what fitting begins with: a weight's rows get their
            own, LEVEL_ROWS of them the same. Methods are given these as `own`, whole numbers in
            float32 [rows, values], ascending.
    """

    format: WeightFormat
    values: tuple[int, ...]
    group: int
    scale_levels: tuple[int, int] | None = None
    fitted: bool = False

    @property
    def name(self) -> str:
        """Of the format and of what its values are."""
        return f"{self.format.name} fitted" if self.fitted else self.format.name

    @property
    def block(self) -> int:
        """Inputs of a block: one group, or several."""
        return self.format.block_elements

    @property
    def bits(self) -> float:
        """Per weight, scales included."""
        return self.format.bits_per_element

    def bits_of(self, rows: Sequence[int], in_features: int) -> float:
        """Per weight of tensors of so many rows, what these have of their own included."""
        tables = sum(-(-count // LEVEL_ROWS) for count in rows) if self.fitted else 0
        return self.bits + 8 * len(self.values) * tables / (sum(rows) * in_features)

    @property
    def largest(self) -> int:
        """The largest magnitude of both signs."""
        return min(-self.values[0], self.values[-1])

    @property
    def _is_uniform(self) -> bool:
        return all(upper - lower == 1 for lower, upper in pairwise(self.values))

    def nearest(self, scaled: Tensor, own: Tensor | None = None) -> Tensor:
        """int64 codes of float32 numbers [rows, ...]."""
        if own is None and self._is_uniform:
            lowest, highest = self.values[0], self.values[-1]
            return scaled.round().clamp(lowest, highest).sub_(lowest).long()
        # (Comparisons with each border are several times faster than torch.bucketize.)
        codes = torch.zeros(scaled.shape, dtype=torch.uint8)
        if own is None:
            for lower, upper in pairwise(self.values):
                codes += scaled > (lower + upper) / 2
            return codes.long()
        for border in ((own[:, :-1] + own[:, 1:]) / 2).unbind(1):
            codes += scaled > border.view(-1, *[1] * (scaled.ndim - 1))
        return codes.long()

    def numbers(self, codes: Tensor, own: Tensor | None = None) -> Tensor:
        """float32 [rows, ...] of codes."""
        if own is not None:
            return own.gather(1, codes.reshape(len(codes), -1)).view(codes.shape)
        levels = torch.tensor(self.values, dtype=torch.float32)
        return levels[codes]

    def held(self, scales: Tensor) -> Tensor:
        """float32 [rows, groups] of whole blocks, as the format can hold them."""
        if self.scale_levels is None:
            return half(scales)
        unit, numbers = self._in_units(scales)
        return (numbers * unit).flatten(-2)

    def _in_units(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """A unit for each block, [rows, blocks, 1], and whole numbers of them. What was held
        already gives the same again: the largest is as many units as there can be."""
        assert self.scale_levels is not None
        lowest, highest = self.scale_levels
        grouped = scales.unflatten(-1, (-1, self.block // self.group))
        unit = half(grouped.abs().amax(-1, keepdim=True) / highest)
        return unit, (grouped / safe(unit)).round().clamp(lowest, highest)

    def pack(self, codes: Tensor, scales: Tensor, own: Tensor | None = None) -> StoredTensor:
        """Of codes [rows, groups, group] and scales [rows, groups]."""
        blocks = codes.to(torch.uint8).flatten(1).unflatten(1, (-1, self.block))
        unit, numbers = half(scales)[..., None], None
        if self.scale_levels is not None:
            unit, numbers = self._in_units(scales)
            numbers = numbers.to(torch.int8)
        head = unit.half().view(torch.uint8)
        packed = _PACKERS[self.format.name](head, blocks, numbers).flatten(1)
        levels = None if own is None else own.to(torch.int8)
        return StoredTensor(self.format, packed, levels=levels)


def half(scales: Tensor) -> Tensor:
    """As half precision holds them."""
    return scales.clamp(-65504, 65504).half().float()


def safe(scales: Tensor) -> Tensor:
    """To divide by."""
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def _bytes(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., 8 / bits, n] of so many bits in bytes [..., n], the first of them lowest."""
    shifted = codes << torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    packed: Tensor = shifted.sum(-2, dtype=torch.uint8)
    return packed


def _halves(codes: Tensor) -> Tensor:
    """Codes of four bits [..., n], the first half of each 32 in the lower halves of bytes."""
    return _bytes(codes.unflatten(-1, (-1, 2, 16)), 4).flatten(-2)


def _quarters(codes: Tensor) -> Tensor:
    """Codes of two bits [..., n], four of each 32 in a byte."""
    return _bytes(codes.unflatten(-1, (-1, 4, 8)), 2).flatten(-2)


def _bits(codes: Tensor) -> Tensor:
    """Single bits [..., n], eight in a byte, the first the lowest."""
    return _bytes(codes.unflatten(-1, (-1, 8))[..., None], 1).flatten(-2)


def _pack_p3(codes: Tensor) -> Tensor:
    return torch.cat([_quarters(codes & 3), _bits(codes >> 2)], dim=-1)


def _pack_q5_0(codes: Tensor) -> Tensor:
    return torch.cat([_bits(codes >> 4), _halves(codes & 15)], dim=-1)


def _pack_q8_0(codes: Tensor) -> Tensor:
    return (codes - 127).view(torch.uint8)  # code 0 is -127


def _headed(pack: Callable[[Tensor], Tensor]) -> "_Packer":
    """Of formats with one scale for a block, before the codes."""
    return lambda head, codes, scales: torch.cat([head, pack(codes)], dim=-1)


def _pack_q3_k(head: Tensor, codes: Tensor, scales: Tensor | None) -> Tensor:
    assert scales is not None
    third = _bytes((codes >> 2).unflatten(-1, (8, 32)), 1)
    two = _bytes((codes & 3).unflatten(-1, (2, 4, 32)), 2).flatten(-2)
    six = (scales + 32).view(torch.uint8)
    lower = _bytes((six & 15).unflatten(-1, (2, 8)), 4)
    upper = _bytes((six >> 4).unflatten(-1, (4, 4)), 2)
    return torch.cat([third, two, lower, upper, head], dim=-1)


def _pack_q6_k(head: Tensor, codes: Tensor, scales: Tensor | None) -> Tensor:
    assert scales is not None
    four = _bytes((codes & 15).unflatten(-1, (2, 2, 64)), 4).flatten(-2)
    two = _bytes((codes >> 4).unflatten(-1, (2, 4, 32)), 2).flatten(-2)
    return torch.cat([four, two, scales.view(torch.uint8), head], dim=-1)


def _pack_iq4_xs(head: Tensor, codes: Tensor, scales: Tensor | None) -> Tensor:
    assert scales is not None
    six = (scales + 32).view(torch.uint8)
    upper = _bytes((six >> 4).unflatten(-1, (2, 4)).transpose(-1, -2), 2)
    lower = _bytes((six & 15).unflatten(-1, (4, 2)).transpose(-1, -2), 4)
    return torch.cat([head, upper, lower, _halves(codes)], dim=-1)


_Packer = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of each block: its scale in half precision [rows, blocks, 2], codes [rows, blocks, block], and
whole numbers that scales are of it, int8 [rows, blocks, groups]: bytes [rows, blocks, of one]."""
_PACKERS: Mapping[str, _Packer] = {
    "P2": _headed(_quarters),
    "P3": _headed(_pack_p3),
    "P4": _headed(_halves),
    "IQ4_NL": _headed(_halves),
    "Q5_0": _headed(_pack_q5_0),
    "Q8_0": _headed(_pack_q8_0),
    "Q3_K": _pack_q3_k,
    "Q6_K": _pack_q6_k,
    "IQ4_XS": _pack_iq4_xs,
}

_Q5_0 = Levels(BLOCK_FORMATS["Q5_0"], tuple(range(-16, 16)), 32)
_Q8_0 = Levels(BLOCK_FORMATS["Q8_0"], tuple(range(-127, 128)), 32)
_TURNED = {
    2: (-127, -44, 22, 97),
    3: (-127, -77, -45, -18, 7, 34, 62, 101),
    4: (-127, -96, -75, -58, -44, -31, -19, -8, 3, 14, 24, 35, 47, 61, 78, 101),
}
"""What fitting makes of normally distributed numbers, 64 of which share a scale. It takes 6% off
the error of PALETTES: scales have a sign, so that the outermost level is on the side of the
outermost number."""
_PALETTES = tuple(Levels(BLOCK_FORMATS[f"P{bits}"], PALETTES[bits], 64) for bits in (2, 3, 4))
FITTED_LEVELS = tuple(
    Levels(BLOCK_FORMATS[f"P{bits}"], _TURNED[bits], 64, fitted=True) for bits in (2, 3, 4)
)
LEVELS: tuple[Levels, ...] = (
    *(levels for pair in zip(_PALETTES, FITTED_LEVELS, strict=True) for levels in pair),
    _Q5_0,
    _Q8_0,
)
"""With ascending bits."""
STANDARD_LEVELS: tuple[Levels, ...] = (
    Levels(BLOCK_FORMATS["Q3_K"], tuple(range(-4, 4)), 16, (-32, 31)),
    Levels(BLOCK_FORMATS["IQ4_XS"], IQ4_VALUES, 32, (-32, 31)),
    Levels(BLOCK_FORMATS["IQ4_NL"], IQ4_VALUES, 32),
    _Q5_0,
    Levels(BLOCK_FORMATS["Q6_K"], tuple(range(-32, 32)), 16, (-128, 127)),
    _Q8_0,
)
"""Those of GGUF that are levels times a scale, with ascending bits."""


def levels_for(in_features: int, among: Sequence[Levels] = LEVELS) -> tuple[Levels, ...]:
    """Those whose blocks fill rows of so many inputs."""
    return tuple(levels for levels in among if in_features % levels.block == 0)
