"""Inputs of a quantized weight that are in groups other than their order (GPTQ's act order)."""

import hashlib
import struct
from collections import Counter
from functools import lru_cache

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.gguf_file import numbers
from loire.checkpoint.small_tensors import INTEGERS, data_of, shaped, typed


def order_of_inputs(
    groups: TensorInfo | None, inputs: int, group: int, num_groups: int
) -> tuple[TensorInfo | None, bytes | None]:
    """To which group each input belongs, None if that is their order; and, where it makes whole
    groups of an order of the inputs, a digest of it. Raises CheckpointError if one has none."""
    if groups is None:
        return None, None
    shaped(typed(groups, ("I32", "I64")), (inputs,))
    data, code = data_of(groups), INTEGERS[groups.format.name]
    if data == _in_order(inputs, group, code):
        return None, None
    given = numbers(code, data)
    if min(given) < 0 or max(given) >= num_groups:
        # compressed-tensors fills it with -1 where there is no such order.
        if min(given) == max(given) == -1:
            return None, None
        wrong = next(index for index in given if not 0 <= index < num_groups)
        raise CheckpointError(
            f"{groups.path}: tensor {groups.name!r} puts an input into group {wrong}, but there "
            f"are {num_groups}"
        )
    if inputs % group or set(Counter(given).values()) != {group}:
        return groups, None
    return groups, hashlib.blake2b(data, digest_size=16).digest()


@lru_cache(maxsize=16)
def _in_order(inputs: int, group: int, code: str) -> bytes:
    """To which group each input belongs where they lie one after another, as a file has it."""
    return struct.pack(f"<{inputs}{code}", *(i // group for i in range(inputs)))
