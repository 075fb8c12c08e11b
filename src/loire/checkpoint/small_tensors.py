"""Tensors beside the weights: checked for type and shape, and the small ones read whole."""

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.gguf_file import numbers

INTEGERS = {"I32": "i", "I64": "q"}
"""Types of whole numbers, as struct names them."""


def typed(info: TensorInfo, dtypes: tuple[str, ...]) -> TensorInfo:
    """The same tensor. Raises CheckpointError if its type is none of these."""
    if info.format.name not in dtypes:
        raise CheckpointError(
            f"{info.path}: tensor {info.name!r} has dtype {info.format.name}, but should have "
            f"{' or '.join(dtypes)}"
        )
    return info


def shaped(info: TensorInfo, *shapes: tuple[int, ...]) -> TensorInfo:
    """The same tensor. Raises CheckpointError if its shape is none of these."""
    if info.shape not in shapes:
        wanted = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise CheckpointError(
            f"{info.path}: tensor {info.name!r} has the shape {info.shape}, but should have "
            f"{wanted}"
        )
    return info


def matrix(info: TensorInfo) -> tuple[int, int]:
    """Its shape. Raises CheckpointError if it is no matrix, or an empty one."""
    if len(info.shape) != 2 or not all(info.shape):
        raise CheckpointError(
            f"{info.path}: tensor {info.name!r} of a quantized matrix has the shape {info.shape}"
        )
    return info.shape[0], info.shape[1]


def whole_numbers(info: TensorInfo) -> tuple[int, ...]:
    """All elements of a tensor whose type is one of INTEGERS."""
    return tuple(int(value) for value in numbers(INTEGERS[info.format.name], data_of(info)))


def data_of(info: TensorInfo) -> bytes:
    """Its bytes. Raises CheckpointError if the file ends before."""
    with info.path.open("rb") as file:
        file.seek(info.offset)
        data = file.read(info.num_bytes)
    if len(data) != info.num_bytes:
        raise CheckpointError(f"{info.path} ends within tensor {info.name!r}: it is truncated")
    return data
