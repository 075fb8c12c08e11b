"""Headers of safetensors files, single or sharded: names, shapes and checked byte ranges.

Specification: https://github.com/huggingface/safetensors#format
"""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.formats import BF16, F16, F32, WeightFormat

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library sets."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES: dict[str, WeightFormat] = {"F32": F32, "F16": F16, "BF16": BF16}


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
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    if pickles:
        raise UnsupportedModelError(
            f"{directory} has its weights as pickles only ({pickles[0]}, ...): loading one would "
            f"run whatever code is in it; convert the model to safetensors"
        )
    raise CheckpointError(f"{directory} has no safetensors files")


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
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path} claims a header of {length} bytes, but has {size} bytes in all"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a header that is not an object")
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _tensor(path, name, entry, start, size) for name, entry in header.items()}
    _check_overlap(path, tensors)
    return tensors


def _read_shards(directory: Path) -> dict[str, TensorInfo]:
    path = directory / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
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
        raise CheckpointError(f"{path} lists {missing[0]!r} (and {len(missing) - 1} more), missing")
    return tensors


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> TensorInfo:
    def broken(what: str) -> CheckpointError:
        return CheckpointError(f"{path} is damaged: tensor {name!r} {what}")

    if not isinstance(entry, Mapping):
        raise broken("has no description")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise broken(f"has shape {shape!r} and offsets {offsets!r}")
    if entry.get("dtype") not in _DTYPES:
        raise UnsupportedModelError(
            f"{path}: tensor {name!r} has dtype {entry.get('dtype')!r}; "
            f"Loire reads {', '.join(_DTYPES)} from safetensors"
        )
    fmt = _DTYPES[entry["dtype"]]
    num_elements = 1
    for dimension in shape:
        num_elements *= dimension
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
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**48 for item in value
    )


def _check_overlap(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise CheckpointError(f"{path} is damaged: tensor {tensor.name!r} overlaps another")
        end = tensor.offset + tensor.num_bytes
