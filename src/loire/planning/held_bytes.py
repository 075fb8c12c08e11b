"""What a weight takes in memory: in the model's dtype, in the blocks of its file, in the format or
the number of bits that is asked for, or rounded as the engine's `--quantization` rounds."""

import math
from collections.abc import Sequence
from typing import cast

from loire.base.config import Quantization
from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.formats import BF16, F16, F32, FORMATS, WeightFormat, kept_bytes
from loire.checkpoint.kept_blocks import rounded_to, stays_as_stored
from loire.checkpoint.weights import Matrix, Role, Vector, Weight

DTYPES: dict[str, WeightFormat] = {"bfloat16": BF16, "float16": F16, "float32": F32}
QUANTIZATIONS: dict[str, WeightFormat] = {
    name.lower(): fmt for name, fmt in FORMATS.items() if fmt.block_elements > 1
}
"""Block formats, scales included."""
ROUNDED: dict[str, WeightFormat] = {
    "int8": WeightFormat("INT8", 1, 1),
    "int4": WeightFormat("INT4", 32, 18),
}
"""What the engine rounds to, without the scales of int8, one for each output."""
EXPANDED = "none"
"""Quantization that expands what a file has in blocks. None keeps those, as the engine does."""


def held_bytes(
    weight: Weight,
    tensors: Sequence[TensorInfo],
    dtype: str,
    quantization: str | None,
    bits: float | None,
    role: Role | None = None,
) -> int:
    """tensors: those that hold the weight, its bias included. role: other than its own.

    Raises ConfigError if a format's blocks do not fit the rows.
    """
    if isinstance(weight, Vector):
        return sum(F32.num_bytes(tensor.num_elements) for tensor in tensors)
    if bits is not None:
        return sum(math.ceil(tensor.num_elements * bits / 8) for tensor in tensors)
    if quantization is not None and quantization in ROUNDED:
        asked, rounding = cast(Quantization, quantization), None
        if isinstance(weight, Matrix):
            rounding = rounded_to(weight, tensors, asked, role)
        if rounding is not None:
            return sum(_rounded_bytes(tensor, dtype, rounding) for tensor in tensors)
        quantization = None
    in_blocks = False
    if quantization is None and isinstance(weight, Matrix):
        stored = [tensor for tensor in tensors if len(tensor.shape) > 1]  # without the bias
        in_blocks = stays_as_stored(weight, stored)
    return sum(_bytes_as(tensor, dtype, quantization, in_blocks) for tensor in tensors)


def _rounded_bytes(tensor: TensorInfo, dtype: str, rounding: str) -> int:
    if len(tensor.shape) != 2:
        return DTYPES[dtype].num_bytes(tensor.num_elements)
    outputs, inputs = tensor.shape
    if rounding == "int8":
        return outputs * (inputs + F32.block_bytes)
    fmt = ROUNDED[rounding]
    return outputs * math.ceil(inputs / fmt.block_elements) * fmt.block_bytes


def _bytes_as(tensor: TensorInfo, dtype: str, quantization: str | None, in_blocks: bool) -> int:
    num_elements = tensor.num_elements
    if in_blocks and tensor.format.block_elements > 1:
        return kept_bytes(tensor.format, tensor.shape[0], num_elements)
    if len(tensor.shape) != 2 or quantization in (None, EXPANDED):
        return DTYPES[dtype].num_bytes(num_elements)
    fmt = QUANTIZATIONS[quantization]
    if tensor.shape[1] % fmt.block_elements:
        smaller = [key for key, other in QUANTIZATIONS.items() if other.block_elements == 32]
        raise ConfigError(
            f"{quantization} packs {fmt.block_elements} weights of a row together, but a row of "
            f"{tensor.name} has {tensor.shape[1]}; take one of {', '.join(smaller)}"
        )
    return fmt.num_bytes(num_elements)
