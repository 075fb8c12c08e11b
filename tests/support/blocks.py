"""Random weights in the block formats of GGUF, and of Loire."""

from functools import lru_cache

import numpy as np
import torch

from loire.checkpoint.formats import BLOCK_FORMATS
from loire.kernels.block_formats import StoredTensor

FITTED = " fitted"
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
          "Q3_K": (108,), "Q2_K": (80, 82), "MXFP4": (), "W4_128": (), "W4Z_128": (),
          "W4Z_32": (), "W8_128": (),
          "F8_128": (), "NV4_128": ()}  # fmt: skip
"""Where a block has numbers of half precision; (0,) if it is not here."""


def blocks_of(fmt: str, shape: tuple[int, ...], seed: int, std: float = 0.2) -> np.ndarray:
    """uint8 [rows, blocks, bytes]: any codes, under scales that give numbers of that deviation."""
    known = BLOCK_FORMATS[fmt]
    rows, inputs = shape
    size = (rows, inputs // known.block_elements, known.block_bytes)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, size, dtype=np.uint8)

    if fmt == "F8_128":
        blocks[..., 4:] -= blocks[..., 4:] & 127 == 127  # so that all are numbers

    if fmt == "NV4_128":
        blocks[..., 4:12] -= blocks[..., 4:12] & 127 == 127

    def scaled(factor: float) -> float:
        for at in HALVES.get(fmt, (0,)):
            scales = (rng.uniform(0.5, 1.5, size[:2]) * factor).astype("<f2")
            blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
        if fmt.startswith(("W", "F8", "NV")):
            floats = (rng.uniform(0.5, 1.5, size[:2]) * factor).astype("<f4")
            blocks[..., :4] = floats[..., None].view(np.uint8)
            if "Z" in fmt:
                blocks[..., 4] &= 15
        if fmt == "MXFP4":
            blocks[..., 0] = rng.integers(120, 124, size[:2])
        return float(StoredTensor(known, torch.from_numpy(blocks).view(rows, -1)).values().std())

    scaled(0.004 * std / scaled(0.004))
    return blocks


@lru_cache(maxsize=64)
def stored(fmt: str, shape: tuple[int, ...], seed: int = 0, std: float = 0.2) -> StoredTensor:
    """The same as a weight, whose blocks nobody may change: several tests get the same one. fmt:
    with FITTED behind its name each eight rows have levels of their own."""
    known, rows = BLOCK_FORMATS[fmt.removesuffix(FITTED)], shape[0]
    blocks = torch.from_numpy(blocks_of(known.name, shape, seed, std)).view(rows, -1)
    if not fmt.endswith(FITTED):
        return StoredTensor(known, blocks)
    random = np.random.default_rng(seed).integers(-128, 128, (-(-rows // 8), known.num_levels))
    levels = torch.from_numpy(random).to(torch.int8)[torch.arange(rows) // 8]
    return StoredTensor(known, blocks, levels=levels)
