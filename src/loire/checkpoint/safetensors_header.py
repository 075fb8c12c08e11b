"""Headers of safetensors files, single or sharded: names, shapes and checked byte ranges.

Specification: https://github.com/huggingface/safetensors#format
"""

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.formats import BF16, F16, F32, WeightFormat
from loire.checkpoint.json_file import parse_object, read_json

MAX_HEADER_BYTES = 2**24
"""Ten times the largest that is known. (The safetensors library takes 100 MB, which is gigabytes
once they are read.)"""
MAX_DIMENSIONS = 8
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
PICKLE_REFUSAL = (
    "{} is a pickle: loading one would run whatever code is in it; convert the model to safetensors"
)
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES: dict[str, WeightFormat] = {
    "F32": F32,
    "F16": F16,
    "BF16": BF16,
    **{name: WeightFormat(name, 1, 1) for name in ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0")},
    "I32": WeightFormat("I32", 1, 4),
}
"""Of weights, and of what quantized weights are made of."""
BUFFERS = {"I64": WeightFormat("I64", 1, 8), "BOOL": WeightFormat("BOOL", 1, 1)}
"""Types that no weight has: older files hold masks and positions, quantized ones shapes."""


def read_directory(directory: Path) -> dict[str, TensorInfo]:
    """All tensors of a directory's safetensors files, under their own names.

    Raises CheckpointError if a file is missing, truncated or inconsistent.
    """
    if (directory / INDEX).exists():
        return _read_shards(directory)
    if (directory / SINGLE).exists():
        return read_file(directory / SINGLE)
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return read_file(files[0])
    if files:
        raise CheckpointError(f"{directory} has {len(files)} safetensors files but no {INDEX}")
    pickles = sorted(path for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UnsupportedModelError(PICKLE_REFUSAL.format(pickles[0]))
    raise CheckpointError(f"{directory} has no safetensors files: the weights are missing")


def read_file(path: Path) -> dict[str, TensorInfo]:
    """All tensors of one file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{path} has {size} bytes: too short for safetensors")
            (length,) = struct.unpack("<Q", prefix)
            if length > size - 8:
                raise CheckpointError(
                    f"{path} claims a header of {length} bytes, but has {size} bytes in all"
                )
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path} has a header of {length} bytes, more than the {MAX_HEADER_BYTES} "
                    f"that any real file stays far below"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    header = parse_object(text, f"the header of {path}")
    start = 8 + length
    tensors = {
        name: _tensor(path, name, entry, start, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_complete(path, tensors, start, size)
    return tensors


def _read_shards(directory: Path) -> dict[str, TensorInfo]:
    path = directory / INDEX
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted({str(value) for value in weight_map.values()}):
        if not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise CheckpointError(f"{path} names {shard!r}, which is not a file of this directory")
        if not (directory / shard).exists():
            raise CheckpointError(f"{path} names {shard}, but it is missing")
        for name, tensor in read_file(directory / shard).items():
            if name in tensors:
                raise CheckpointError(f"{directory}: tensor {name!r} is in two files")
            tensors[name] = tensor
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{path} lists {len(missing)} tensors that no file holds, such as {missing[0]!r}"
        )
    return tensors


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> TensorInfo:
    def broken(what: str) -> CheckpointError:
        return CheckpointError(f"{path} is damaged: tensor {name!r} {what}")

    if not isinstance(entry, Mapping):
        raise broken("has no description")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise broken(f"has shape {str(shape)[:80]} and offsets {str(offsets)[:80]}")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in (_DTYPES | BUFFERS):
        raise UnsupportedModelError(
            f"{path}: tensor {name!r} has dtype {str(dtype)[:80]!r}; "
            f"Loire reads {', '.join(_DTYPES)} from safetensors"
        )
    fmt = (_DTYPES | BUFFERS)[dtype]
    num_elements = math.prod(shape)
    begin, end = offsets
    if end - begin != fmt.num_bytes(num_elements):
        raise broken(f"of shape {shape} takes {fmt.num_bytes(num_elements)} bytes, not the "
                     f"{end - begin} it is given")  # fmt: skip
    if start + end > size:
        raise broken(f"ends at byte {start + end}, but the file has {size}: it is truncated")
    return TensorInfo(
        name=name,
        shape=tuple(shape),
        format=fmt,
        path=path,
        offset=start + begin,
        num_bytes=end - begin,
    )


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(type(item) is int and 0 <= item < 2**48 for item in value)
    )


def _check_complete(path: Path, tensors: Mapping[str, TensorInfo], start: int, size: int) -> None:
    """The tensors fill the file from the header to the end, as the specification wants."""
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != end:
            raise CheckpointError(
                f"{path} is damaged: tensor {tensor.name!r} begins at byte {tensor.offset}, but "
                f"the one before it ends at {end}"
            )
        end = tensor.offset + tensor.num_bytes
    if end != size:
        raise CheckpointError(
            f"{path} is damaged: its last tensor ends at byte {end}, but the file has {size}"
        )
