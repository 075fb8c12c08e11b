"""Block formats taken apart: the numbers of the gguf library, bit for bit."""

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from loire.checkpoint.formats import FORMATS
from loire.kernels.block_formats import UNPACK, StoredTensor, unpack


def random_blocks(fmt: str, rows: int, blocks: int, seed: int = 0) -> torch.Tensor:
    """Any bits at all, but half-precision numbers that are finite."""
    size = FORMATS[fmt].block_bytes
    data = np.random.default_rng(seed).integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    halves = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
              "Q3_K": (108,), "Q2_K": (80, 82), "MXFP4": ()}  # fmt: skip
    for at in halves.get(fmt, (0,)):
        data[..., at + 1] &= 0xBF  # an exponent that is not all ones
    return torch.from_numpy(data).view(rows, -1)


@pytest.mark.parametrize("fmt", UNPACK)
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


@pytest.mark.parametrize("fmt", UNPACK)
def test_all_bits_are_used_and_codes_are_small(fmt: str) -> None:
    taken = unpack(random_blocks(fmt, 3, 99), FORMATS[fmt])
    size = taken.codes.shape[2]
    assert taken.scales.shape == (3, 99 * FORMATS[fmt].block_elements // size)
    assert size in (16, 32)
    assert len(taken.codes.unique()) == {"Q8_0": 256, "Q2_K": 4, "Q3_K": 8, "MXFP4": 15}.get(
        fmt, 16 if "4" in fmt else 32 if "5" in fmt else 64
    )


def test_every_format_of_blocks_can_be_taken_apart() -> None:
    assert set(UNPACK) == {name for name, fmt in FORMATS.items() if fmt.block_elements > 1}
    with pytest.raises(ValueError, match=r"35 bytes are not blocks of 34 bytes \(Q8_0\)"):
        StoredTensor(FORMATS["Q8_0"], torch.zeros(2, 35, dtype=torch.uint8))
