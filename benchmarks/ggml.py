"""GGUF files in any type of ggml's, written tensor by tensor, for the benchmarks.

Numbers are quantized by ggml itself: a libggml-base.so, such as the one in the Python package
llama-cpp-py-sync, or of a build of llama.cpp with BUILD_SHARED_LIBS=ON.
"""

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

PLAIN = {Type.F32: np.float32, Type.F16: np.float16}


class Quantizer:
    """ggml's own rounding to each of its types."""

    def __init__(self, library: Path) -> None:
        self._ggml = ctypes.CDLL(str(library))
        self._ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        self._ggml.ggml_quantize_chunk.argtypes = (
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
            ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        )  # fmt: skip

    def blocks(
        self, values: NDArray[np.float32], to: Type, importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """Of values [rows, columns]: uint8 [rows, bytes of a row].

        importance: of each column, such as the mean square of inputs; where it is not given all
        count as much, as some types do not go without.
        """
        values = np.ascontiguousarray(values, dtype=np.float32)
        rows, columns = values.shape
        elements, size = gguf.GGML_QUANT_SIZES[to]
        if columns % elements:
            raise ValueError(f"{columns} columns do not fill blocks of {elements} ({to.name})")
        found = np.empty((rows, columns // elements * size), dtype=np.uint8)
        if importance is None:
            importance = np.ones(columns, dtype=np.float32)
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        self._ggml.ggml_quantize_init(int(to))
        written = self._ggml.ggml_quantize_chunk(
            int(to), values.ctypes.data, found.ctypes.data, 0, rows, columns,
            importance.ctypes.data,
        )  # fmt: skip
        if written != found.nbytes:
            raise RuntimeError(f"ggml wrote {written} bytes of {to.name}, not {found.nbytes}")
        return found


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a file is to hold: numbers of a type in a shape, made when their turn comes."""

    name: str
    kind: Type
    shape: tuple[int, ...]
    """Of elements, rows first."""
    make: Callable[[], NDArray[Any]]
    """Blocks uint8 [rows, bytes of a row], or numbers, for types without blocks."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the array that is made."""
        if self.kind in PLAIN:
            return self.shape
        elements, size = gguf.GGML_QUANT_SIZES[self.kind]
        return (*self.shape[:-1], self.shape[-1] // elements * size)


def write(
    path: Path, fields: Mapping[str, tuple[Any, Any, Any]], tensors: Sequence[Tensor]
) -> None:
    """A file of fields (value, type, type of elements) and tensors, of which one is in memory."""
    writer = gguf.GGUFWriter(path, fields["general.architecture"][0])
    for key, (value, kind, elements) in fields.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, kind, sub_type=elements)
    for tensor in tensors:
        dtype = np.dtype(PLAIN.get(tensor.kind, np.uint8))
        size = math.prod(tensor.stored_shape) * dtype.itemsize
        raw = None if tensor.kind in PLAIN else tensor.kind
        writer.add_tensor_info(tensor.name, tensor.stored_shape, dtype, size, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.make())
    writer.close()


def read_fields(reader: gguf.GGUFReader) -> dict[str, tuple[Any, Any, Any]]:
    """Of a file, as write() takes them."""
    return {
        field.name: (
            field.contents(),
            field.types[0],
            field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None,
        )
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    }
