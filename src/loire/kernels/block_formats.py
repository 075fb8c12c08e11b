"""The block formats of GGUF (ggml): codes, and a scale and perhaps a minimum for a group of them.

    weight = code * scale            or            weight = code * scale + minimum

in float32, each operation rounded by itself: the same bits as the gguf library gives. What a
backend computes with weights that stay in their blocks is defined by this.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loire.checkpoint.formats import WeightFormat


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Rows of a weight in the blocks that a file holds."""

    format: WeightFormat
    blocks: Tensor
    """uint8 [rows, bytes of a row], rows without gaps."""

    def __post_init__(self) -> None:
        fmt, num_bytes = self.format, self.blocks.shape[1]
        if num_bytes % fmt.block_bytes:
            raise ValueError(
                f"{num_bytes} bytes are not blocks of {fmt.block_bytes} bytes ({fmt.name})"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and elements of a row."""
        rows, num_bytes = self.blocks.shape
        return rows, num_bytes // self.format.block_bytes * self.format.block_elements

    def to(self, device: torch.device) -> "StoredTensor":
        """The same on another device."""
        return StoredTensor(self.format, self.blocks.to(device))

    def values(self) -> Tensor:
        """float32 [rows, elements]."""
        return unpack(self.blocks, self.format).values().view(self.shape)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Rows of blocks, taken apart."""

    codes: Tensor
    """Whole numbers, int8 [rows, groups, elements of a group]."""
    scales: Tensor
    """float32 [rows, groups]."""
    minimums: Tensor | None
    """float32 [rows, groups]."""

    def values(self) -> Tensor:
        """float32 [rows, groups, elements of a group]."""
        scaled = self.codes.float() * self.scales[..., None]
        return scaled if self.minimums is None else scaled + self.minimums[..., None]


def unpack(blocks: Tensor, fmt: WeightFormat) -> Unpacked:
    """Of blocks, uint8 [rows, bytes of a row]. Raises KeyError for a format of plain numbers."""
    return UNPACK[fmt.name](blocks.view(len(blocks), -1, fmt.block_bytes))


def _half(data: Tensor) -> Tensor:
    """float32 [...] of two bytes [..., 2]."""
    return data.contiguous().view(torch.float16).float()[..., 0]


def _nibbles(data: Tensor) -> Tensor:
    """The lower halves of bytes [..., n], then the upper: uint8 [..., 2 n]."""
    return torch.cat([data & 15, data >> 4], dim=-1)


def _planes(data: Tensor, bits: int) -> Tensor:
    """Of bytes [..., n]: the lowest bits of all, then the next, and so on: [..., 8 / bits, n]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    return (data[..., None, :] >> shifts[:, None]) & ((1 << bits) - 1)


def _rows(tensor: Tensor, size: int) -> Tensor:
    """Codes of all blocks of a row in groups of a size: int8 [rows, groups, size]."""
    return tensor.reshape(len(tensor), -1, size).to(torch.int8)


def _per_32(codes: Tensor, scales: Tensor, minimums: Tensor | None = None) -> Unpacked:
    return Unpacked(_rows(codes, 32), scales, minimums)


def _q8_0(b: Tensor) -> Unpacked:
    return _per_32(b[..., 2:].contiguous().view(torch.int8), _half(b[..., :2]))


def _q4_0(b: Tensor) -> Unpacked:
    return _per_32(_nibbles(b[..., 2:]).to(torch.int8) - 8, _half(b[..., :2]))


def _q4_1(b: Tensor) -> Unpacked:
    return _per_32(_nibbles(b[..., 4:]), _half(b[..., :2]), _half(b[..., 2:4]))


def _fifth_bits(data: Tensor) -> Tensor:
    """16 or 0 for each of the 32 bits of four bytes [..., 4]: uint8 [..., 32]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    return ((data[..., None] >> shifts) & 1).flatten(-2) << 4


def _q5_0(b: Tensor) -> Unpacked:
    codes = _nibbles(b[..., 6:]) | _fifth_bits(b[..., 2:6])
    return _per_32(codes.to(torch.int8) - 16, _half(b[..., :2]))


def _q5_1(b: Tensor) -> Unpacked:
    codes = _nibbles(b[..., 8:]) | _fifth_bits(b[..., 4:8])
    return _per_32(codes, _half(b[..., :2]), _half(b[..., 2:4]))


def _six_bits(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minimums of the 8 groups of Q4_K and Q5_K: float32 [rows, groups]."""
    scale, minimum = _half(b[..., :2])[..., None], _half(b[..., 2:4])[..., None]
    lower, upper, mixed = b[..., 4:8], b[..., 8:12], b[..., 12:16]
    scales = torch.cat([lower & 63, (mixed & 15) | ((lower >> 2) & 48)], dim=-1)
    minimums = torch.cat([upper & 63, (mixed >> 4) | ((upper >> 2) & 48)], dim=-1)
    return (scale * scales).flatten(1), -(minimum * minimums).flatten(1)


def _pairs(data: Tensor) -> Tensor:
    """32 bytes hold two groups: the lower halves, then the upper. uint8 [..., groups, 32]."""
    return _planes(data.unflatten(-1, (-1, 32)), 4).flatten(-3, -2)


def _q4_k(b: Tensor) -> Unpacked:
    return _per_32(_pairs(b[..., 16:]), *_six_bits(b))


def _q5_k(b: Tensor) -> Unpacked:
    fifth = _planes(b[..., 16:48], 1)
    return _per_32(_pairs(b[..., 48:]) | fifth << 4, *_six_bits(b))


def _q6_k(b: Tensor) -> Unpacked:
    four = _planes(b[..., :128].unflatten(-1, (2, 64)), 4).flatten(-2)
    two = _planes(b[..., 128:192].unflatten(-1, (2, 32)), 2).flatten(-2)
    codes = (four | two << 4).to(torch.int8) - 32
    scales = _half(b[..., 208:210])[..., None] * b[..., 192:208].contiguous().view(torch.int8)
    return Unpacked(_rows(codes, 16), scales.flatten(1), None)


def _q3_k(b: Tensor) -> Unpacked:
    two = _planes(b[..., 32:96].unflatten(-1, (2, 32)), 2).flatten(-3)
    third = _planes(b[..., :32], 1).flatten(-2)
    codes = (two | third << 2).to(torch.int8) - 4
    lower = _planes(b[..., 96:104], 4).flatten(-2)
    upper = _planes(b[..., 104:108], 2).flatten(-2)
    scales = (lower | upper << 4).to(torch.int8) - 32
    return Unpacked(_rows(codes, 16), (_half(b[..., 108:110])[..., None] * scales).flatten(1), None)


def _q2_k(b: Tensor) -> Unpacked:
    codes = _planes(b[..., 16:80].unflatten(-1, (2, 32)), 2).flatten(-3)
    scales = _half(b[..., 80:82])[..., None] * (b[..., :16] & 15)
    minimums = -(_half(b[..., 82:84])[..., None] * (b[..., :16] >> 4))
    return Unpacked(_rows(codes, 16), scales.flatten(1), minimums.flatten(1))


IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""What the codes of four bits stand for; in MXFP4 (E2M1) twice that."""


def _looked_up(values: tuple[int, ...], codes: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int8, device=codes.device)[codes.long()]


def _iq4_nl(b: Tensor) -> Unpacked:
    return _per_32(_looked_up(IQ4_VALUES, _nibbles(b[..., 2:])), _half(b[..., :2]))


def _iq4_xs(b: Tensor) -> Unpacked:
    codes = _looked_up(IQ4_VALUES, _nibbles(b[..., 8:].unflatten(-1, (8, 16))))
    lower = torch.stack([b[..., 4:8] & 15, b[..., 4:8] >> 4], dim=-1).flatten(-2)
    upper = _planes(b[..., 2:4], 2).transpose(-1, -2).flatten(-2)
    scales = (lower | upper << 4).to(torch.int8) - 32
    return _per_32(codes, (_half(b[..., :2])[..., None] * scales).flatten(1))


def _mxfp4(b: Tensor) -> Unpacked:
    # Half of 2 ** (e - 127), as the values are doubled; the least two are no normal numbers.
    exponents = b[..., 0].int()
    bits = torch.where(exponents < 2, 0x00200000 << exponents, (exponents - 1) << 23)
    return _per_32(_looked_up(MXFP4_VALUES, _nibbles(b[..., 1:])), bits.view(torch.float32))


UNPACK: dict[str, Callable[[Tensor], Unpacked]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q4_K": _q4_k,
    "Q5_K": _q5_k, "Q6_K": _q6_k, "Q3_K": _q3_k, "Q2_K": _q2_k, "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
}  # fmt: skip
"""By name: of uint8 [rows, blocks, bytes of a block]."""
