"""A quantized model as a GGUF file: that of the original with other weights in it, or one that is
made of what the original says in other words."""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loire import __version__
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo
from loire.checkpoint.gguf_file import GGUFFile, GGUFTensor
from loire.checkpoint.gguf_parts import is_gguf, read_model
from loire.checkpoint.hub_cache import name_of
from loire.checkpoint.weights import Vector, each
from loire.kernels.block_formats import StoredTensor
from loire.quantize.gguf_head import Head, made_head
from loire.quantize.gguf_vocabulary import made_vocabulary
from loire.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

_LEFT_OUT = ("general.architecture", "general.file_type", "split.")
"""Keys, or what they begin with: the library writes the first, the others are no longer true."""
ROPE_DIVISORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    format: str
    num_bytes: int
    data: Callable[[], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class GGUFOutput:
    """What a model's file will be made of, besides its weights.

    Raises UnsupportedModelError for a model that came as something else and of which a file would
    say something else.
    """

    checkpoint: Checkpoint
    head: Head | None
    """None: the model came as a GGUF file, whose own is taken over."""
    vocabulary: Mapping[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint, tokenizer: Tokenizer, text: str) -> "GGUFOutput":
        """text: what a vocabulary that is made is tried on."""
        if checkpoint.path.is_file() and is_gguf(checkpoint.path):
            return cls(checkpoint, None, {})
        head = made_head(checkpoint)
        return cls(checkpoint, head, made_vocabulary(checkpoint, tokenizer, text))

    def write(
        self,
        pieces: Iterable[Mapping[str, Tensor | StoredTensor]],
        path: Path,
        report: Mapping[str, float],
    ) -> None:
        """With the tensors that the pieces have."""
        import gguf

        found = {name: tensor for piece in pieces for name, tensor in piece.items()}
        if self.head is None:
            source = read_model(self.checkpoint.path)
            architecture = str(source.metadata["general.architecture"])
            writer = gguf.GGUFWriter(path, architecture)
            _copy_metadata(writer, source.path)
            entries = [*_replaced(source, self.checkpoint, found)]
        else:
            writer = gguf.GGUFWriter(path, self.checkpoint.description.architecture)
            for key, value in {**self.head.metadata, **self.vocabulary}.items():
                if key not in _LEFT_OUT:
                    _add(writer, key, value)
            entries = [*_renamed(self.head, self.checkpoint, found)]
        writer.add_string("loire.made_by", f"loire {__version__}")
        writer.add_string("loire.made_from", name_of(self.checkpoint.path))
        for name, value in report.items():
            writer.add_float32(f"loire.{name}", value)
        for entry in entries:
            kind = gguf.GGMLQuantizationType[entry.format]
            # (The shape in numbers, whatever type they have: bytes would be uint8.)
            size = entry.num_bytes
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(entry.data())
        writer.close()


def _copy_metadata(writer: "GGUFWriter", path: Path) -> None:
    import gguf

    for field in gguf.GGUFReader(path).fields.values():
        if not field.name.startswith(("GGUF.", *_LEFT_OUT)):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)


def _add(writer: "GGUFWriter", key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        assert isinstance(value, (list, array))
        writer.add_array(key, list(value))


def _replaced(
    source: GGUFFile, checkpoint: Checkpoint, found: Mapping[str, Tensor | StoredTensor]
) -> Iterator[_Entry]:
    """The source's tensors, with blocks in the place of what was rounded."""
    places = {(info.path, info.offset): info for info in checkpoint.tensors.values()}
    for name, tensor in source.tensors.items():
        parts = [*_parts(tensor, places)]
        rounded = [found.get(info.name) for info in parts]
        blocks = [
            _as_in_file(blocks, info.interleaved_heads)
            for info, blocks in zip(parts, rounded, strict=True)
            if isinstance(blocks, StoredTensor)
        ]
        if blocks:
            yield _of_blocks(name, tensor.shape, blocks)
        else:
            data = partial(_bytes_of, tensor)
            yield _Entry(name, tensor.shape, tensor.format.name, tensor.num_bytes, data)


def _parts(
    tensor: GGUFTensor, places: Mapping[tuple[Path, int], TensorInfo]
) -> Iterator[TensorInfo]:
    """The model's tensors that it has one behind the other: one, or that of each expert."""
    at, end = tensor.offset, tensor.offset + tensor.num_bytes
    while at < end and (info := places.get((tensor.path, at))) is not None:
        yield info
        at += info.num_bytes


def _renamed(
    head: Head, checkpoint: Checkpoint, found: Mapping[str, Tensor | StoredTensor]
) -> Iterator[_Entry]:
    """What was rounded and what was not, under the names of the file."""
    if head.rope_divisors:
        numbers = torch.tensor(head.rope_divisors, dtype=torch.float32)
        yield _of_numbers(ROPE_DIVISORS, numbers)
    weights = each(checkpoint.description.weights())
    offsets = {x.name: x.offset for x in weights if isinstance(x, Vector)}
    for name, info in head.tensors.items():
        tensor = found[name]
        if isinstance(tensor, StoredTensor):
            blocks = _as_in_file(tensor, info.interleaved_heads)
            yield _of_blocks(info.name, info.shape, [blocks])
        else:
            numbers = tensor.float() + offsets.get(name, 0.0)
            if info.interleaved_heads:
                numbers = _pairs(numbers, info.interleaved_heads)
            yield _of_numbers(info.name, numbers)


def _of_blocks(name: str, shape: tuple[int, ...], blocks: list[StoredTensor]) -> _Entry:
    """One below the other; all have the format of the first (sensitivity.Unit)."""
    [fmt] = {stored.format for stored in blocks}
    num_bytes = sum(stored.blocks.nbytes for stored in blocks)
    assert num_bytes == fmt.num_bytes(math.prod(shape)), name
    return _Entry(
        name,
        shape,
        fmt.name,
        num_bytes,
        lambda: np.concatenate([stored.blocks.numpy() for stored in blocks]),
    )


def _of_numbers(name: str, numbers: Tensor) -> _Entry:
    data = numbers.contiguous().numpy()
    return _Entry(name, tuple(numbers.shape), "F32", data.nbytes, lambda: data)


def _as_in_file(stored: StoredTensor, interleaved_heads: int) -> StoredTensor:
    if not interleaved_heads:
        return stored
    return StoredTensor(stored.format, _pairs(stored.blocks, interleaved_heads))


def _pairs(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from halves (0, 1, ..., D/2, ...) to pairs (0, D/2, 1, ...)."""
    halves = rows.unflatten(0, (num_heads, 2, -1))
    pairs: Tensor = halves.transpose(1, 2).reshape(rows.shape)
    return pairs.contiguous()


def _bytes_of(tensor: GGUFTensor) -> NDArray[np.uint8]:
    return np.fromfile(tensor.path, np.uint8, tensor.num_bytes, offset=tensor.offset)
