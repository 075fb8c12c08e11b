"""A checked reader of GGUF headers (v2 and v3): metadata and where the tensors lie.

The gguf library's own reader trusts the counts and lengths in the file and takes seconds on a
vocabulary; this one compares each with what is left of the file first, and with a limit that no
real header comes near. The library still names the types that Loire does not read, and
dequantizes those that it does.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.formats import (
    BF16,
    F16,
    F32,
    FORMATS,
    IQ2_S,
    IQ2_XS,
    IQ2_XXS,
    IQ3_S,
    IQ3_XXS,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    WeightFormat,
)

MAGIC = b"GGUF"
MAX_DIMENSIONS = 4
MAX_COUNT = 2**24
"""Most entries of an array, bytes of a string, keys or tensors: 64 times the largest vocabulary."""
MAX_NAME_BYTES = 2**16 - 1
"""Longest key by the specification; tensor names are far shorter."""
_TYPES: dict[int, WeightFormat] = {0: F32, 1: F16, 2: Q4_0, 3: Q4_1, 6: Q5_0, 7: Q5_1, 8: Q8_0,
                                   10: Q2_K, 11: Q3_K, 12: Q4_K, 13: Q5_K, 14: Q6_K, 16: IQ2_XXS,
                                   17: IQ2_XS, 18: IQ3_XXS, 20: IQ4_NL, 21: IQ3_S, 22: IQ2_S,
                                   23: IQ4_XS, 30: BF16, 39: MXFP4}  # fmt: skip
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Codes of the struct module by type."""
_STRING, _ARRAY = 8, 9


def numbers(code: str, data: bytes) -> "array[int] | array[float]":
    """Little-endian numbers of a type of the array module. (numpy takes longer to import.)"""
    values: array[Any] = array(code, data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of a GGUF file, its range checked against the file's size."""

    name: str
    shape: tuple[int, ...]
    """Rows first (the file has it the other way round)."""
    format: WeightFormat
    offset: int
    """Bytes from the start of the file."""
    num_bytes: int
    path: Path
    """The file that has it, one of several where a model is split."""


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """Header of a GGUF file."""

    path: Path
    metadata: Mapping[str, Any]
    """Scalars as int, float, bool or str; arrays as numpy arrays, or lists of str."""
    tensors: Mapping[str, GGUFTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF file; the weights are not touched.

    Raises CheckpointError if the file is truncated, inconsistent or not GGUF, and
    UnsupportedModelError if its weights are in a format that Loire does not read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise CheckpointError(f"{path} has {size} bytes: too short for a GGUF header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


class _Reader:
    """A cursor over the file that never passes its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.at = 0

    def read(self) -> GGUFFile:
        if self._take(4) != MAGIC:
            raise CheckpointError(f"{self.path} is not a GGUF file: it does not begin with 'GGUF'")
        version = self._scalar(4)
        if version not in (2, 3):
            raise CheckpointError(
                f"{self.path} is GGUF version {version}; versions 2 and 3 can be read"
                + (" (is it big-endian?)" if version & 0xFFFF == 0 else "")
            )
        num_tensors, num_keys = self._count(24), self._count(13)
        metadata = {}
        for _ in range(num_keys):
            key = self._name()
            if key in metadata:
                raise self._broken(f"key {key!r} occurs twice")
            metadata[key] = self._value(self._scalar(4))
        tensors = self._tensors(num_tensors, metadata)
        return GGUFFile(self.path, metadata, tensors)

    def _tensors(self, count: int, metadata: Mapping[str, Any]) -> dict[str, GGUFTensor]:
        entries = [self._tensor_entry() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 2**20 or alignment % 8:
            raise self._broken(
                f"general.alignment should be a multiple of 8, but is {str(alignment)[:40]}"
            )
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, type_id, relative in entries:
            fmt = self._format(name, type_id)
            if shape[-1] % fmt.block_elements:
                raise self._broken(
                    f"tensor {name!r} has rows of {shape[-1]} elements, which do not fill blocks "
                    f"of {fmt.block_elements} ({fmt.name})"
                )
            num_bytes = fmt.num_bytes(math.prod(shape))
            if relative % alignment:
                raise self._broken(
                    f"tensor {name!r} lies at {relative}, not at a multiple of {alignment} bytes"
                )
            offset = start + relative
            if offset + num_bytes > self.size:
                raise self._broken(
                    f"tensor {name!r} lies at bytes {offset} to {offset + num_bytes}, "
                    f"but the file has {self.size}: it is truncated or damaged"
                )
            if name in tensors:
                raise self._broken(f"tensor {name!r} occurs twice")
            tensors[name] = GGUFTensor(name, shape, fmt, offset, num_bytes, self.path)
        self._check_overlap(tensors.values())
        return tensors

    def _check_overlap(self, tensors: Iterable[GGUFTensor]) -> None:
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._broken(f"tensor {tensor.name!r} overlaps another")
            end = tensor.offset + tensor.num_bytes

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name()
        num_dimensions = self._scalar(4)
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self._broken(f"tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(self._scalar(10) for _ in range(num_dimensions))
        if any(dimension < 1 or dimension > 2**40 for dimension in shape):
            raise self._broken(f"tensor {name!r} has the shape {shape}")
        return name, shape[::-1], self._scalar(4), self._scalar(10)

    def _format(self, name: str, type_id: int) -> WeightFormat:
        if type_id in _TYPES:
            return _TYPES[type_id]
        from gguf.constants import GGMLQuantizationType  # takes longer than the reading

        try:
            type_name = GGMLQuantizationType(type_id).name
        except ValueError as error:
            raise self._broken(f"tensor {name!r} has the unknown type {type_id}") from error
        raise UnsupportedModelError(
            f"{self.path}: tensor {name!r} is stored as {type_name}; "
            f"Loire reads {', '.join(FORMATS)}"
        )

    def _value(self, type_id: int) -> Any:
        if type_id == _STRING:
            return self._string()
        if type_id == _ARRAY:
            return self._array()
        return self._scalar(type_id)

    def _array(self) -> Any:
        type_id = self._scalar(4)
        if type_id == _STRING:
            return self._strings(self._count(8))
        if type_id not in _SCALARS:
            raise self._broken(f"an array has elements of type {type_id}")
        code = _SCALARS[type_id]
        size = struct.calcsize("<" + code)
        return numbers("B" if code == "?" else code, self._take(self._count(size) * size))

    def _strings(self, count: int) -> list[str]:
        # The inner loop of opening a model: a vocabulary has up to 262,144 entries.
        data, at, size = self.data, self.at, self.size
        unpack = struct.Struct("<Q").unpack_from
        strings: list[str] = []
        append = strings.append
        for _ in range(count):
            if at + 8 > size:
                raise self._broken("an array of strings runs past the end")
            (length,) = unpack(data, at)
            at += 8
            if length > size - at:
                raise self._broken(f"a string at byte {at} claims {length} bytes")
            append(data[at : at + length].decode("utf-8", "replace"))
            at += length
        self.at = at
        return strings

    def _name(self) -> str:
        """A key or the name of a tensor."""
        length = self._count(1)
        if length > MAX_NAME_BYTES:
            raise self._broken(f"byte {self.at - 8} claims a name of {length} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _string(self) -> str:
        return self._take(self._count(1)).decode("utf-8", "replace")

    def _count(self, least_bytes: int) -> int:
        """A 64-bit count of things that take at least that many bytes each."""
        count = int(self._scalar(10))
        if count * least_bytes > self.size - self.at:
            raise self._broken(
                f"byte {self.at - 8} claims {count} entries of at least {least_bytes} bytes, "
                f"but only {self.size - self.at} bytes follow"
            )
        if count > MAX_COUNT:
            raise self._broken(
                f"byte {self.at - 8} claims {count} entries, more than the {MAX_COUNT} that any "
                f"real file stays far below"
            )
        return count

    def _scalar(self, type_id: int) -> Any:
        if type_id not in _SCALARS:
            raise self._broken(f"unknown value type {type_id} at byte {self.at}")
        code = "<" + _SCALARS[type_id]
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _take(self, num_bytes: int) -> bytes:
        if num_bytes > self.size - self.at:
            raise self._broken(
                f"{num_bytes} bytes are missing at byte {self.at}: the file has {self.size}"
            )
        self.at += num_bytes
        return self.data[self.at - num_bytes : self.at]

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged: {what}")
