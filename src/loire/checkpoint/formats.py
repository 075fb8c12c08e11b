"""How weights are stored: element types and the block formats of GGUF (ggml).

A block format packs `block_elements` consecutive elements of a row into `block_bytes` bytes.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One way of storing elements."""

    name: str
    block_elements: int
    block_bytes: int
    num_levels: int = 0
    """Where rows may have levels of their own, what codes stand for: so many of them, int8."""

    @property
    def bits_per_element(self) -> float:
        """Average, scales included."""
        return self.block_bytes * 8 / self.block_elements

    def num_bytes(self, num_elements: int) -> int:
        """Bytes of that many elements; they must fill whole blocks."""
        blocks, rest = divmod(num_elements, self.block_elements)
        if rest:
            raise ValueError(
                f"{num_elements} elements do not fill blocks of {self.block_elements} ({self.name})"
            )
        return blocks * self.block_bytes


F32 = WeightFormat("F32", 1, 4)
F16 = WeightFormat("F16", 1, 2)
BF16 = WeightFormat("BF16", 1, 2)
Q8_0 = WeightFormat("Q8_0", 32, 34)
Q4_0 = WeightFormat("Q4_0", 32, 18)
Q4_1 = WeightFormat("Q4_1", 32, 20)
Q5_0 = WeightFormat("Q5_0", 32, 22)
Q5_1 = WeightFormat("Q5_1", 32, 24)
Q4_K = WeightFormat("Q4_K", 256, 144)
Q5_K = WeightFormat("Q5_K", 256, 176)
Q6_K = WeightFormat("Q6_K", 256, 210)
Q3_K = WeightFormat("Q3_K", 256, 110)
Q2_K = WeightFormat("Q2_K", 256, 84)
IQ2_XXS = WeightFormat("IQ2_XXS", 256, 66)
IQ2_XS = WeightFormat("IQ2_XS", 256, 74)
IQ2_S = WeightFormat("IQ2_S", 256, 82)
IQ3_XXS = WeightFormat("IQ3_XXS", 256, 98)
IQ3_S = WeightFormat("IQ3_S", 256, 110)
IQ4_NL = WeightFormat("IQ4_NL", 32, 18)
IQ4_XS = WeightFormat("IQ4_XS", 256, 136)
MXFP4 = WeightFormat("MXFP4", 32, 17)
# Loire's own (loire quantize): codes of a palette, and one scale for 64 of them.
P2 = WeightFormat("P2", 64, 18, num_levels=4)
P3 = WeightFormat("P3", 64, 26, num_levels=8)
P4 = WeightFormat("P4", 64, 34, num_levels=16)
LEVEL_ROWS = 64
"""Rows that share levels in what `loire quantize` writes."""
LEAST_LEVEL_ROWS = 8
"""Kernels look up the codes of so many rows in one table: whoever shares levels is a multiple."""

W4_128 = WeightFormat("W4_128", 128, 68)
W4Z_128 = WeightFormat("W4Z_128", 128, 69)
W4Z_32 = WeightFormat("W4Z_32", 32, 21)
W8_128 = WeightFormat("W8_128", 128, 132)
F8_128 = WeightFormat("F8_128", 128, 132)
"""Loire's own, for quantized weights of safetensors: codes (in F8 of FP8, e4m3), and a scale in
float32 and perhaps (Z) a zero point for each block."""
NV4_128 = WeightFormat("NV4_128", 128, 76)
"""Likewise for NVFP4: codes of FP4 (e2m1), a scale in FP8 (e4m3) for 16, and a float32 that these
are multiplied by."""

_CODES_OF_EIGHT_BITS = WeightFormat("8 bits, a scale per 16", 256, 276)

FORMATS: dict[str, WeightFormat] = {
    fmt.name: fmt
    for fmt in (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, Q3_K, Q2_K, IQ2_XXS,
                IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, MXFP4)
}  # fmt: skip
"""Those that files have, by name."""

BLOCK_FORMATS: dict[str, WeightFormat] = {
    fmt.name: fmt
    for fmt in (*FORMATS.values(), P2, P3, P4, W4_128, W4Z_128, W4Z_32, W8_128, F8_128, NV4_128)
    if fmt.block_elements > 1
}
"""All that weights are computed with in their blocks, by name."""


_HELD_BYTES = {Q4_K: 148, Q5_K: 180, Q3_K: 114, IQ4_XS: 138, MXFP4: 18, W4Z_128: 70, W4Z_32: 22}


def held_as(fmt: WeightFormat) -> WeightFormat:
    """What blocks of a format become in memory where they are kept.

    Scales of six bits and zero points are bytes there, exponents of MXFP4 numbers in bfloat16. The
    codes of IQ2 and IQ3, which stand for entries of tables, are looked up once and are then whole
    numbers of eight bits.
    """
    if fmt.name.startswith(("IQ2_", "IQ3_")):
        return _CODES_OF_EIGHT_BITS
    return replace(fmt, block_bytes=_HELD_BYTES.get(fmt, fmt.block_bytes))


def kept_bytes(fmt: WeightFormat, rows: int, num_elements: int) -> int:
    """Bytes in memory of a matrix of so many rows that is kept in its blocks: levels have 16 for
    each eight rows, whether they are the rows' own or not."""
    levels = 16 * rows // LEAST_LEVEL_ROWS if fmt.num_levels else 0
    return held_as(fmt).num_bytes(num_elements) + levels
