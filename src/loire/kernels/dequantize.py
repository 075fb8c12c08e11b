"""Numbers out of the block formats of GGUF, on the host: by native kernels where there are any,
whatever computes the model, else by the gguf library, whose results are the definition."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from loire.checkpoint.formats import WeightFormat
from loire.kernels.block_formats import unpack

Dequantize = Callable[[memoryview, WeightFormat, torch.dtype], Tensor]
"""Whole blocks of a format to its elements, flat: computed in float32, then rounded to the dtype.
The same bits from each of them."""

CHUNK_ELEMENTS = 2**19
"""How many elements the gguf library dequantizes at once."""


@cache
def _native() -> Dequantize | None:
    """Native kernels with threads of their own, which sleep when there is nothing to do."""
    from loire.kernels.native.backend import NativeBackend

    return NativeBackend().linear.dequantize if NativeBackend.available()[0] else None


def dequantize_on_host(data: memoryview, fmt: WeightFormat, dtype: torch.dtype) -> Tensor:
    """By native kernels where there are any, else by the gguf library.

    Raises ValueError if data are not whole blocks.
    """
    return (_native() or dequantize_by_library)(data, fmt, dtype)


def dequantize_by_library(data: memoryview, fmt: WeightFormat, dtype: torch.dtype) -> Tensor:
    """By the gguf library, some blocks at a time: it makes two copies in float32.

    Raises ValueError if data are not whole blocks.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    blocks = np.frombuffer(data, dtype=np.uint8).reshape(-1, fmt.block_bytes)
    kind = GGMLQuantizationType.__members__.get(fmt.name)
    if kind is None:  # Loire's own
        return unpack(torch.from_numpy(blocks), fmt).values().to(dtype).view(-1)
    result = torch.empty(len(blocks), fmt.block_elements, dtype=dtype)
    step = max(1, CHUNK_ELEMENTS // fmt.block_elements)
    for first in range(0, len(blocks), step):
        values = dequantize(blocks[first : first + step], kind)
        result[first : first + step] = torch.from_numpy(np.ascontiguousarray(values))
    return result.view(-1)
