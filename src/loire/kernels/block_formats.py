"""Block formats: codes, and a scale and perhaps a minimum for a group of them.

    weight = code * scale            or            weight = code * scale + minimum

in float32, each operation rounded by itself: for those of GGUF (ggml) the same bits as the gguf
library gives. Loire's own (W4 and others) hold what quantized safetensors hold: the minimum is the
scale times a zero point, and the sum exact for scales of up to 19 bits, as float16 and bfloat16
are; in F8 codes are numbers in FP8 (e4m3), in NV4 scales are, times a float32. What a backend
computes with weights that stay in their blocks is defined by this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from loire.checkpoint.formats import (
    F8_128,
    IQ2_S,
    IQ2_XS,
    IQ2_XXS,
    IQ3_S,
    IQ3_XXS,
    LEAST_LEVEL_ROWS,
    MXFP4,
    NV4_128,
    P2,
    Q2_K,
    Q8_0,
    WeightFormat,
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Rows of a weight in the blocks that a file holds."""

    format: WeightFormat
    blocks: Tensor
    """uint8 [rows, bytes of a row], rows without gaps."""
    order: Tensor | None = None
    """int64 [elements of a row]: which input each of a row's elements belongs to, where they do
    not lie in the order of the inputs (GPTQ's act order)."""
    levels: Tensor | None = None
    """int8 [rows, levels of the format]: what codes stand for; None for the usual (PALETTES)."""

    def __post_init__(self) -> None:
        fmt, num_bytes = self.format, self.blocks.shape[1]
        if num_bytes % fmt.block_bytes:
            raise ValueError(
                f"{num_bytes} bytes are not blocks of {fmt.block_bytes} bytes ({fmt.name})"
            )
        wanted = len(self.blocks), fmt.num_levels
        if self.levels is not None and tuple(self.levels.shape) != wanted:
            raise ValueError(
                f"levels have the shape {tuple(self.levels.shape)}, but should have {wanted} "
                f"({fmt.name})"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and elements of a row."""
        rows, num_bytes = self.blocks.shape
        return rows, num_bytes // self.format.block_bytes * self.format.block_elements

    def to(self, device: torch.device) -> "StoredTensor":
        """The same on another device."""
        order = None if self.order is None else self.order.to(device)
        levels = None if self.levels is None else self.levels.to(device)
        return StoredTensor(self.format, self.blocks.to(device), order, levels)

    def rows(self, which: Tensor | slice) -> "StoredTensor":
        """Some of its rows, in that order."""
        levels = None if self.levels is None else self.levels[which]
        return replace(self, blocks=self.blocks[which], levels=levels)

    def with_rows_of(self, other: "StoredTensor") -> "StoredTensor":
        """Its rows, and below them those of another that lies as it does."""
        blocks = torch.cat([self.blocks, other.blocks])
        if self.levels is None and other.levels is None:
            return replace(self, blocks=blocks)
        return replace(self, blocks=blocks, levels=torch.cat([_levels(self), _levels(other)]))

    def lies_as(self, other: "StoredTensor") -> bool:
        """Whether rows of the other could be its own."""
        if self.format is not other.format:
            return False
        if self.order is None or other.order is None:
            return self.order is other.order
        return torch.equal(self.order, other.order)

    def values(self) -> Tensor:
        """float32 [rows, inputs]."""
        found = self.values_as_stored()
        return found if self.order is None else found[:, torch.argsort(self.order)]

    def values_as_stored(self) -> Tensor:
        """float32 [rows, elements], in the order in which they lie."""
        return unpack(self.blocks, self.format, self.levels).values().view(self.shape)

    def in_eight_bits(self) -> "StoredTensor":
        """The same numbers as codes of Q8_0, of a format with levels."""
        taken = unpack(self.blocks, self.format, self.levels)
        codes = taken.codes.unflatten(-1, (-1, Q8_0.block_elements)).flatten(1, 2)
        scales = taken.scales.half().repeat_interleave(codes.shape[1] // taken.scales.shape[1], 1)
        blocks = torch.cat([scales[..., None].view(torch.uint8), codes.view(torch.uint8)], dim=-1)
        return replace(self, format=Q8_0, blocks=blocks.flatten(1), levels=None)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Rows of blocks, taken apart."""

    codes: Tensor
    """Whole numbers, int8 [rows, groups, elements of a group]; in F8 numbers, float8_e4m3fn."""
    scales: Tensor
    """float32 [rows, groups]."""
    minimums: Tensor | None
    """float32 [rows, groups]."""

    def values(self) -> Tensor:
        """float32 [rows, groups, elements of a group]."""
        scaled = self.codes.float() * self.scales[..., None]
        return scaled if self.minimums is None else scaled + self.minimums[..., None]


def unpack(blocks: Tensor, fmt: WeightFormat, levels: Tensor | None = None) -> Unpacked:
    """Of blocks, uint8 [rows, bytes of a row]. levels: int8 [rows, levels of the format], or None
    for the usual ones. Raises KeyError for a format of plain numbers."""
    taken_apart = blocks.view(len(blocks), -1, fmt.block_bytes)
    if levels is None:
        return UNPACK[fmt.name](taken_apart)
    return _with_levels(_PALETTE_CODES[fmt.name](taken_apart), taken_apart, levels)


def share_levels(parts: Sequence[StoredTensor], halves: int) -> bool:
    """Whether rows that kernels look up in one table have the same levels: of all rows, one part
    below the other and cut into so many halves, each eight from a multiple of eight on."""
    if all(part.levels is None for part in parts):
        return True
    for half in torch.cat([_levels(part) for part in parts]).chunk(halves):
        rest = -len(half) % LEAST_LEVEL_ROWS
        eights = torch.cat([half, half[-1:].expand(rest, -1)]).unflatten(0, (-1, LEAST_LEVEL_ROWS))
        if not torch.equal(eights, eights[:, :1].expand_as(eights)):
            return False
    return True


def _levels(stored: StoredTensor) -> Tensor:
    """int8 [rows, levels], the usual ones where it has none of its own."""
    if stored.levels is not None:
        return stored.levels
    return _usual_levels(stored.format.num_levels, stored.blocks)


def _usual_levels(count: int, rows: Tensor) -> Tensor:
    """int8 [rows, count]."""
    [values] = [values for values in PALETTES.values() if len(values) == count]
    return torch.tensor(values, dtype=torch.int8, device=rows.device).expand(len(rows), -1)


def rounds_inputs(fmt: WeightFormat) -> bool:
    """Whether products with it take inputs in bfloat16 rounded to eight bits: where codes are whole
    numbers, so that sums of their products are exact."""
    return fmt.name != F8_128.name


def has_powers(fmt: WeightFormat) -> bool:
    """Whether its scales are powers of two, so that kernels multiply them with any scale of inputs
    without loss."""
    return fmt.name == MXFP4.name


def has_fine_inputs(fmt: WeightFormat) -> bool:
    """Whether inputs are rounded to eight times as many numbers: where so few bits are left of a
    model that it minds rounded inputs too much (docs/performance.md)."""
    return fmt in (Q2_K, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, P2)


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


@cache
def _grid(name: str) -> Tensor:
    """Codes by their index in the gguf library's table of an IQ format: int8 [n, 8 or 4]."""
    from gguf import quants

    kind = getattr(quants, name)
    kind.init_grid()
    return torch.from_numpy(kind.grid.reshape(kind.grid_shape)).to(torch.int8)


def _bits(data: Tensor, shifts: Sequence[int], mask: int) -> Tensor:
    """Of numbers int64 [...]: those bits from each of the shifts on, [..., shifts]."""
    return (data[..., None] >> torch.tensor(shifts)) & mask


def _signed(codes: Tensor, signs: Tensor) -> Tensor:
    """Codes int8 [..., 8 n] with the signs of their bits in signs int64 [..., n]."""
    negative = _bits(signs, range(8), 1).flatten(-2)
    return torch.where(negative == 0, codes, -codes)


def _even_signs(seven: Tensor) -> Tensor:
    """Signs of eight codes from those of seven: an even number is negative."""
    return seven | (_bits(seven, range(7), 1).sum(dim=-1) & 1) << 7


def _iq(codes: Tensor, block_scales: Tensor, scale_codes: Tensor) -> Unpacked:
    """codes: int8 [rows, blocks, 256]; block_scales: float32 [rows, blocks]; scale_codes: int64
    [rows, blocks, 8 or 16]."""
    scales = block_scales[..., None] * (2 * scale_codes + 1)
    return Unpacked(_rows(codes, 256 // scale_codes.shape[-1]), scales.flatten(1), None)


def _words(data: Tensor) -> Tensor:
    """int64 [...] of four bytes [..., 4], without a sign."""
    return data.contiguous().view(torch.int32)[..., 0].long() & 0xFFFFFFFF


def _iq2_xxs(b: Tensor) -> Unpacked:
    groups = b[..., 2:].unflatten(-1, (8, 8))
    codes = _grid("IQ2_XXS")[groups[..., :4].long()].flatten(-3)
    rest = _words(groups[..., 4:])
    signs = _even_signs(_bits(rest, (0, 7, 14, 21), 127)).flatten(-2)
    return _iq(_signed(codes, signs), _half(b[..., :2]) * 0.125, rest >> 28)


def _iq2_xs(b: Tensor) -> Unpacked:
    both = b[..., 2:66].unflatten(-1, (32, 2)).long()
    both = both[..., 0] | both[..., 1] << 8
    codes = _grid("IQ2_XS")[both & 511].flatten(-2)
    scales = _bits(b[..., 66:].long(), (0, 4), 15).flatten(-2)
    return _iq(_signed(codes, _even_signs(both >> 9)), _half(b[..., :2]) * 0.125, scales)


def _iq2_s(b: Tensor) -> Unpacked:
    upper = _bits(b[..., 66:74].long(), (0, 2, 4, 6), 3).flatten(-2)
    codes = _grid("IQ2_S")[b[..., 2:34].long() | upper << 8].flatten(-2)
    scales = _bits(b[..., 74:].long(), (0, 4), 15).flatten(-2)
    return _iq(_signed(codes, b[..., 34:66].long()), _half(b[..., :2]) * 0.125, scales)


def _iq3_xxs(b: Tensor) -> Unpacked:
    codes = _grid("IQ3_XXS")[b[..., 2:66].long()].flatten(-2)
    rest = _words(b[..., 66:].unflatten(-1, (8, 4)))
    signs = _even_signs(_bits(rest, (0, 7, 14, 21), 127)).flatten(-2)
    return _iq(_signed(codes, signs), _half(b[..., :2]) * 0.25, rest >> 28)


def _iq3_s(b: Tensor) -> Unpacked:
    upper = _bits(b[..., 66:74].long(), range(8), 1).flatten(-2)
    codes = _grid("IQ3_S")[b[..., 2:66].long() | upper << 8].flatten(-2)
    scales = _bits(b[..., 106:].long(), (0, 4), 15).flatten(-2)
    return _iq(_signed(codes, b[..., 74:106].long()), _half(b[..., :2]), scales)


def _float(data: Tensor) -> Tensor:
    """float32 [...] of four bytes [..., 4]."""
    return data.contiguous().view(torch.float32)[..., 0]


def _w4(b: Tensor) -> Unpacked:
    codes = _nibbles(b[..., 4:].unflatten(-1, (-1, 16))).to(torch.int8) - 8
    return Unpacked(codes.flatten(-2), _float(b[..., :4]), None)


def _w4z(b: Tensor) -> Unpacked:
    codes = _nibbles(b[..., 5:].unflatten(-1, (-1, 16))).to(torch.int8)
    scales = _float(b[..., :4])
    return Unpacked(codes.flatten(-2), scales, scales * -b[..., 4].to(torch.int8))


def _w8(b: Tensor) -> Unpacked:
    return Unpacked(b[..., 4:].contiguous().view(torch.int8), _float(b[..., :4]), None)


def _f8(b: Tensor) -> Unpacked:
    return Unpacked(b[..., 4:].contiguous().view(torch.float8_e4m3fn), _float(b[..., :4]), None)


def _nv4(b: Tensor) -> Unpacked:
    codes = _looked_up(MXFP4_VALUES, _nibbles(b[..., 12:].unflatten(-1, (4, 16))))
    scales = _float(b[..., :4])[..., None] * b[..., 4:12].view(torch.float8_e4m3fn).float()
    return Unpacked(_rows(codes, 16), scales.flatten(1), None)


def pack_groups(fmt: WeightFormat, codes: Tensor, scales: Tensor, zeros: Tensor | float) -> Tensor:
    """Blocks uint8 [rows, bytes] of one of Loire's own formats.

    codes: [rows, elements], uint8 (W4), int8 (W8) or float8_e4m3fn (F8); scales: float32 [rows,
    blocks]; zeros: whole numbers [rows, blocks] or one for all, of formats that have zero points.
    """
    rows, size = len(codes), fmt.block_elements
    parts = [scales.contiguous()[..., None].view(torch.uint8)]
    if fmt.name.startswith("W4Z"):
        given = zeros if isinstance(zeros, Tensor) else torch.full_like(scales, zeros)
        parts.append(given.to(torch.uint8)[..., None])
    if fmt.name.startswith("W4"):
        parts.append(_halved(codes, size))
    else:
        parts.append(codes.reshape(rows, -1, size).contiguous().view(torch.uint8))
    return torch.cat(parts, dim=-1).flatten(1)


def pack_nv4(codes: Tensor, scales: Tensor, number: Tensor) -> Tensor:
    """Blocks uint8 [rows, bytes] of NV4_128.

    codes: uint8 [rows, elements]; scales: float8_e4m3fn [rows, elements / 16]; number: one in
    float32, which gives the codes' doubled values.
    """
    rows, size = len(codes), NV4_128.block_elements
    blocks = codes.shape[1] // size
    numbers = number.reshape(1, 1, 1).expand(rows, blocks, 1).contiguous().view(torch.uint8)
    bytes_of_scales = scales.contiguous().view(torch.uint8).reshape(rows, blocks, -1)
    return torch.cat([numbers, bytes_of_scales, _halved(codes, size)], dim=-1).flatten(1)


def _halved(codes: Tensor, size: int) -> Tensor:
    """uint8 [rows, blocks, size / 2] of codes of four bits [rows, elements], as _nibbles() reads
    each 32 of them."""
    eights = codes.reshape(len(codes), -1, 2, 16).view(torch.int64)  # eight codes at a time
    halves = eights[:, :, 0] | eights[:, :, 1] << 4
    return halves.view(torch.uint8).reshape(len(codes), -1, size // 2)


PALETTES = {
    2: (-127, -38, 38, 127),
    3: (-127, -79, -45, -14, 14, 45, 79, 127),
    4: (-127, -96, -75, -58, -44, -31, -18, -6, 6, 18, 31, 44, 58, 75, 96, 127),
}
"""What codes of P2, P3 and P4 stand for where rows have no levels of their own, by their bits: the
levels with the least square error for normally distributed weights (Max 1960, "Quantizing for
minimum distortion"), in whole numbers."""


def _p2_codes(b: Tensor) -> Tensor:
    return _planes(b[..., 2:18].unflatten(-1, (2, 8)), 2).flatten(-3)


def _p3_codes(b: Tensor) -> Tensor:
    third = _fifth_bits(b[..., 18:26].unflatten(-1, (2, 4))).flatten(-2) >> 2
    return _p2_codes(b) | third


def _p4_codes(b: Tensor) -> Tensor:
    return _nibbles(b[..., 2:].unflatten(-1, (2, 16))).flatten(-2)


_PALETTE_CODES: dict[str, Callable[[Tensor], Tensor]] = {
    "P2": _p2_codes,
    "P3": _p3_codes,
    "P4": _p4_codes,
}
"""Of uint8 [rows, blocks, bytes of a block]: uint8 [rows, blocks, 64]."""


def _with_levels(codes: Tensor, b: Tensor, levels: Tensor) -> Unpacked:
    """codes: uint8 [rows, blocks, 64]; levels: int8 [rows, levels]."""
    numbers = levels.gather(1, codes.flatten(1).long())
    return Unpacked(numbers.unflatten(1, (-1, 64)), _half(b[..., :2]).flatten(1), None)


def _p2(b: Tensor) -> Unpacked:
    return _with_levels(_p2_codes(b), b, _usual_levels(4, b))


def _p3(b: Tensor) -> Unpacked:
    return _with_levels(_p3_codes(b), b, _usual_levels(8, b))


def _p4(b: Tensor) -> Unpacked:
    return _with_levels(_p4_codes(b), b, _usual_levels(16, b))


UNPACK: dict[str, Callable[[Tensor], Unpacked]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q4_K": _q4_k,
    "Q5_K": _q5_k, "Q6_K": _q6_k, "Q3_K": _q3_k, "Q2_K": _q2_k, "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4, "W4_128": _w4, "W4Z_128": _w4z, "W4Z_32": _w4z,
    "W8_128": _w8, "F8_128": _f8, "NV4_128": _nv4, "P2": _p2, "P3": _p3, "P4": _p4,
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
}  # fmt: skip
"""By name: of uint8 [rows, blocks, bytes of a block]."""
