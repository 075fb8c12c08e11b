"""How weights are stored: element types and the block formats of GGUF (ggml).

A block format packs `block_elements` consecutive elements of a row into `block_bytes` bytes.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One way of storing elements."""

    name: str
    block_elements: int
    block_bytes: int

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
IQ4_NL = WeightFormat("IQ4_NL", 32, 18)
IQ4_XS = WeightFormat("IQ4_XS", 256, 136)
MXFP4 = WeightFormat("MXFP4", 32, 17)

FORMATS: dict[str, WeightFormat] = {
    fmt.name: fmt
    for fmt in (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, Q3_K, Q2_K, IQ4_NL,
                IQ4_XS, MXFP4)
}  # fmt: skip
