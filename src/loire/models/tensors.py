"""Tensors out of mapped files: converted to a dtype, dequantized, put into the usual order."""

import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loire.checkpoint.checkpoint import TensorInfo

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorReader:
    """Reads tensors by name through memory maps; nothing is kept but the maps."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor on the host, contiguous, in dtype."""
        info = self._tensors[name]
        tensor = self._decode(info)
        if info.interleaved_heads:
            tensor = _halves(tensor, info.interleaved_heads)
        # A copy always: nothing may go on pointing into a file.
        return tensor.to(dtype, copy=True).contiguous()

    def _decode(self, info: TensorInfo) -> Tensor:
        data = self._map(info.path)
        if info.format.name in _PLAIN:
            plain = torch.frombuffer(
                data,
                dtype=_PLAIN[info.format.name],
                count=info.num_bytes // info.format.block_bytes,
                offset=info.offset,
            )
            return plain.view(info.shape)
        return torch.from_numpy(_dequantize(info, data)).view(info.shape)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                # Copy on write: torch wants memory it may write to, and never does.
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]


def _dequantize(
    info: TensorInfo, data: mmap.mmap
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """float32 values of a block format, by the gguf library's own definition."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    row_bytes = info.format.num_bytes(info.shape[-1])
    raw = np.frombuffer(data, dtype=np.uint8, count=info.num_bytes, offset=info.offset)
    values = dequantize(raw.reshape(-1, row_bytes), GGMLQuantizationType[info.format.name])
    return np.ascontiguousarray(values, dtype=np.float32)


def _halves(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from pairs (0, D/2, 1, ...) to halves (0, 1, ..., D/2, ...)."""
    rest = tensor.shape[1:]
    pairs = tensor.view(num_heads, tensor.shape[0] // num_heads // 2, 2, *rest)
    return pairs.transpose(1, 2).reshape(tensor.shape)
