"""Tensors out of mapped files: converted to a dtype, dequantized, put into the usual order."""

import mmap
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.weights import Slice
from loire.kernels.block_formats import StoredTensor
from loire.kernels.dequantize import CHUNK_ELEMENTS, Dequantize, dequantize_by_library
from loire.models.quantized_weights import read_grouped, to_blocks

_PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


class TensorReader:
    """Reads tensors by name through memory maps; nothing is kept but the maps."""

    def __init__(
        self, tensors: Mapping[str, TensorInfo], dequantize: Dequantize = dequantize_by_library
    ) -> None:
        self._tensors = tensors
        self._dequantize = dequantize
        self._maps: dict[Path, mmap.mmap] = {}

    def read(
        self,
        name: str,
        dtype: torch.dtype,
        *,
        may_share: bool = False,
        part: Slice | None = None,
    ) -> Tensor:
        """The tensor on the host, contiguous, in dtype.

        may_share: where nothing has to be changed, it may lie in the mapped file (rows perhaps
        apart): for a caller who reads it once and lets go of it.
        part: of it alone, a matrix or its bias; rows of whole heads where heads are interleaved.

        Raises CheckpointError if its file cannot be read, or is shorter than when it was opened.
        """
        info = self._tensors[name]
        if info.quantized is not None:
            whole = read_grouped(info, self._plain).values()
            return _part_of(whole, part).to(dtype)
        heads = info.interleaved_heads
        if info.levels is not None:
            return _expanded(self.read_blocks(name, may_share=True, part=part), dtype)
        if info.exponents is not None:
            tensor = _part_of(self._mxfp4(info).values(), part).to(dtype)
        elif info.format.name in _PLAIN:
            # Otherwise a copy always: nothing may go on pointing into a file.
            numbers = self._plain(info)
            if info.inputs_first:
                numbers = numbers.view(info.shape[::-1]).T
                if part is None:
                    numbers = numbers.contiguous()
            numbers = _part_of(numbers, part)
            tensor = numbers.to(dtype, copy=not may_share)
            if not may_share:
                tensor = tensor.contiguous()
        elif part is None:
            tensor = self._dequantize(self._bytes(info), info.format, dtype).view(info.shape)
        else:
            rows = self._stored_rows(info, part)
            size = sum(end - first for first, end in part.rows), -1
            data = memoryview(rows.contiguous().numpy().data).cast("B")
            tensor = self._dequantize(data, info.format, dtype).view(size)
        if heads:
            tensor = _halves(tensor, heads * len(tensor) // info.shape[0])
        return tensor

    def read_blocks(
        self, name: str, *, may_share: bool = False, part: Slice | None = None
    ) -> StoredTensor:
        """A matrix that is stored in blocks, on the host. may_share, part: as in read().

        Raises CheckpointError as read() does.
        """
        info = self._tensors[name]
        if info.quantized is not None:
            whole = to_blocks(info, self._plain)
            return replace(whole, blocks=_blocks_of(whole.blocks, info, part))
        if info.exponents is not None:
            rows, may_share = _blocks_of(self._mxfp4(info).blocks, info, part), True
        else:
            rows = self._stored_rows(info, part)
        if info.interleaved_heads:
            rows = _halves(rows, info.interleaved_heads * len(rows) // info.shape[0])
        elif not may_share:
            rows = rows.clone()
        return StoredTensor(info.format, rows, levels=self._levels(info, part))

    def let_go(self, name: str) -> None:
        """Tell the system that a tensor has been read: its part of the file no longer counts as
        this process's memory. Whoever reads it again gets the same bytes."""
        for part in self._tensors[name].parts:
            data = self._maps.get(part.path)
            if data is not None and part.num_bytes and hasattr(mmap, "MADV_DONTNEED"):
                # Nothing is ever written to a map, so there is nothing to lose.
                page = part.offset // mmap.PAGESIZE * mmap.PAGESIZE
                data.madvise(mmap.MADV_DONTNEED, page, part.offset + part.num_bytes - page)

    def _stored_rows(self, info: TensorInfo, part: Slice | None) -> Tensor:
        """uint8 [rows, bytes of a row] of blocks as they lie in the mapped file."""
        rows = torch.frombuffer(self._bytes(info), dtype=torch.uint8).view(info.shape[0], -1)
        return _blocks_of(rows, info, part)

    def _levels(self, info: TensorInfo, part: Slice | None) -> Tensor | None:
        """int8 [rows, levels], where the file says what codes stand for."""
        if info.levels is None:
            return None
        of_rows = self._plain(info.levels)[torch.arange(info.shape[0]) // info.level_rows]
        return of_rows if part is None else _rows_of(of_rows, part)

    def _mxfp4(self, info: TensorInfo) -> StoredTensor:
        """Codes and exponents that lie apart, in GGUF's blocks: an exponent, then codes of which
        sixteen apart share a byte."""
        assert info.exponents is not None
        outputs = info.shape[0]
        pairs = torch.frombuffer(self._bytes(info), dtype=torch.uint8).view(outputs, -1, 16)
        exponents = torch.frombuffer(self._bytes(info.exponents), dtype=torch.uint8)
        codes = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(2)
        halves = codes[..., :16] | codes[..., 16:] << 4
        blocks = torch.cat([exponents.view(outputs, -1, 1), halves], dim=-1)
        return StoredTensor(info.format, blocks.flatten(1))

    def _plain(self, info: TensorInfo) -> Tensor:
        """A tensor of plain numbers as it lies in the mapped file."""
        dtype = _PLAIN[info.format.name]
        return torch.frombuffer(self._bytes(info), dtype=dtype).view(info.shape)

    def _bytes(self, info: TensorInfo) -> memoryview:
        data = self._map(info.path)
        size, end = 0 if data is None else len(data), info.offset + info.num_bytes
        if data is None or end > size:
            raise CheckpointError(
                f"{info.path} ends at byte {size}, but tensor {info.name!r} should end at byte "
                f"{end}; was the file changed or is it still being written?"
            )
        return memoryview(data)[info.offset : end]

    def _map(self, path: Path) -> mmap.mmap | None:
        """The file in memory; None if it is empty, which cannot be mapped."""
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    if not os.fstat(file.fileno()).st_size:
                        return None
                    # Copy on write: torch wants memory it may write to, and never does.
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from error
        return self._maps[path]


def _expanded(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """[rows, inputs], some rows at a time: looking up takes many bytes for each number."""
    rows, inputs = stored.shape
    found, together = torch.empty(rows, inputs, dtype=dtype), max(1, CHUNK_ELEMENTS // inputs)
    for first in range(0, rows, together):
        some = slice(first, first + together)
        found[some] = stored.rows(some).values()
    return found


def _part_of(tensor: Tensor, part: Slice | None, unit: tuple[int, int] = (1, 1)) -> Tensor:
    """Of a matrix, or of a vector of its outputs. unit: so many inputs lie in so many columns."""
    if part is None:
        return tensor
    tensor = _rows_of(tensor, part)
    if tensor.ndim == 1:
        return tensor
    inputs, columns = unit
    first, end = (edge // inputs * columns for edge in part.inputs)
    return tensor[:, first:end]


def _rows_of(tensor: Tensor, part: Slice) -> Tensor:
    rows = [tensor[first:end] for first, end in part.rows]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _blocks_of(rows: Tensor, info: TensorInfo, part: Slice | None) -> Tensor:
    """Of rows of blocks, uint8 [rows, bytes of a row]."""
    return _part_of(rows, part, (info.format.block_elements, info.format.block_bytes))


def _halves(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from pairs (0, D/2, 1, ...) to halves (0, 1, ..., D/2, ...)."""
    rest = tensor.shape[1:]
    pairs = tensor.reshape(num_heads, tensor.shape[0] // num_heads // 2, 2, *rest)
    return pairs.transpose(1, 2).reshape(tensor.shape)
