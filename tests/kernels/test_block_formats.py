"""Block formats taken apart: the numbers of the gguf library, bit for bit."""

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from loire.checkpoint.formats import BLOCK_FORMATS, FORMATS
from loire.kernels.block_formats import PALETTES, UNPACK, StoredTensor, pack_groups, unpack
from support.blocks import FITTED, stored

GGUF = [name for name, fmt in FORMATS.items() if fmt.block_elements > 1]


def random_blocks(fmt: str, rows: int, blocks: int, seed: int = 0) -> torch.Tensor:
    """Any bits at all, but half-precision numbers that are finite."""
    size = FORMATS[fmt].block_bytes
    data = np.random.default_rng(seed).integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    halves = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
              "Q3_K": (108,), "Q2_K": (80, 82), "MXFP4": ()}  # fmt: skip
    for at in halves.get(fmt, (0,)):
        data[..., at + 1] &= 0xBF  # an exponent that is not all ones
    return torch.from_numpy(data).view(rows, -1)


@pytest.mark.parametrize("fmt", GGUF)
def test_values_are_those_of_the_gguf_library(fmt: str) -> None:
    blocks = random_blocks(fmt, 5, 7)
    flat = blocks.view(-1, FORMATS[fmt].block_bytes).numpy()
    exact = gguf.quants.dequantize(flat, GGMLQuantizationType[fmt])
    stored = StoredTensor(FORMATS[fmt], blocks)
    assert stored.shape == (5, 7 * FORMATS[fmt].block_elements)
    found = stored.values()
    assert found.dtype == torch.float32
    assert np.array_equal(
        found.numpy().reshape(-1).view(np.int32),
        np.ascontiguousarray(exact).reshape(-1).view(np.int32),
    )


@pytest.mark.parametrize("fmt", GGUF)
def test_all_bits_are_used_and_codes_are_small(fmt: str) -> None:
    taken = unpack(random_blocks(fmt, 3, 99), FORMATS[fmt])
    size = taken.codes.shape[2]
    assert taken.scales.shape == (3, 99 * FORMATS[fmt].block_elements // size)
    assert size in (16, 32)
    some = {"Q8_0": 256, "Q2_K": 4, "Q3_K": 8, "MXFP4": 15, "IQ3_XXS": 16, "IQ3_S": 16}
    assert len(taken.codes.unique()) == some.get(
        fmt, 6 if fmt.startswith("IQ2") else 16 if "4" in fmt else 32 if "5" in fmt else 64
    )


def test_every_format_of_blocks_can_be_taken_apart() -> None:
    assert set(UNPACK) == set(BLOCK_FORMATS)
    with pytest.raises(ValueError, match=r"35 bytes are not blocks of 34 bytes \(Q8_0\)"):
        StoredTensor(FORMATS["Q8_0"], torch.zeros(2, 35, dtype=torch.uint8))


@pytest.mark.parametrize("fmt", ["P2", "P3", "P4"])
def test_rows_may_have_levels_of_their_own(fmt: str) -> None:
    usual = stored(fmt, (16, 128))
    own = stored(f"{fmt}{FITTED}", (16, 128))
    assert own.levels is not None
    plain = unpack(usual.blocks, usual.format)
    values = PALETTES[int(fmt[1])]
    for row in range(16):
        for block in range(2):
            codes = [values.index(int(code)) for code in plain.codes[row, block]]
            numbers = own.levels[row, codes].float() * plain.scales[row, block]
            assert torch.equal(own.values()[row, block * 64 : block * 64 + 64], numbers)
    assert torch.equal(own.in_eight_bits().values(), own.values())
    assert torch.equal(own.with_rows_of(usual).values(), torch.cat([own.values(), usual.values()]))
    with pytest.raises(ValueError, match=r"shape \(16, 5\), but should have \(16, "):
        StoredTensor(own.format, own.blocks, levels=torch.zeros(16, 5, dtype=torch.int8))


@pytest.mark.parametrize("fmt", [name for name in BLOCK_FORMATS if name.startswith("W")])
def test_groups_come_back_as_they_were_packed(fmt: str) -> None:
    size, wide = BLOCK_FORMATS[fmt].block_elements, fmt.startswith("W8")
    random = torch.Generator().manual_seed(0)
    low, high = (-128, 128) if wide else (0, 16)
    codes = torch.randint(low, high, (5, 3 * size), generator=random)
    codes = codes.to(torch.int8 if wide else torch.uint8)
    scales = torch.randn((5, 3), generator=random).half().float()
    zeros = torch.randint(0, 17, (5, 3), generator=random) if "Z" in fmt else None
    blocks = pack_groups(BLOCK_FORMATS[fmt], codes, scales, 0.0 if zeros is None else zeros)
    middle = zeros.repeat_interleave(size, 1) if zeros is not None else 0 if wide else 8
    expected = (codes.float() - middle) * scales.repeat_interleave(size, 1)
    assert torch.equal(StoredTensor(BLOCK_FORMATS[fmt], blocks).values(), expected)
