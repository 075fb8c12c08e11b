"""A quantized model as a GGUF file: that of the original, with other weights in it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loire import __version__
from loire.base.errors import UnsupportedModelError
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo
from loire.checkpoint.gguf_file import GGUFTensor
from loire.checkpoint.gguf_parts import is_gguf, read_model
from loire.checkpoint.hub_cache import name_of
from loire.kernels.block_formats import StoredTensor

_LEFT_OUT = ("general.architecture", "general.file_type", "split.")
"""Keys, or what they begin with: the library writes the first, the others are no longer true."""


def check_source(checkpoint: Checkpoint) -> None:
    """Raises UnsupportedModelError where a file's metadata would have to be made up, or a tensor
    would need several types."""
    if not checkpoint.path.is_file() or not is_gguf(checkpoint.path):
        raise UnsupportedModelError(
            f"{checkpoint.path} is no GGUF file: `loire quantize` writes GGUF of models that came "
            f"as one, as it takes their vocabulary and settings over; of others it writes a "
            f"directory"
        )
    if any(".experts." in name for name in checkpoint.tensors):
        raise UnsupportedModelError(
            f"{checkpoint.path} has experts, all of which have one type in a GGUF file: of such a "
            f"model `loire quantize` writes a directory"
        )


def write_gguf(
    pieces: Iterable[Mapping[str, Tensor | StoredTensor]],
    path: Path,
    checkpoint: Checkpoint,
    report: Mapping[str, float],
) -> None:
    """Of a checkpoint that check_source() took, with the blocks that the pieces have."""
    import gguf

    source = read_model(checkpoint.path)
    head = gguf.GGUFReader(source.path)
    writer = gguf.GGUFWriter(path, str(source.metadata["general.architecture"]))
    for field in head.fields.values():
        if not field.name.startswith(("GGUF.", *_LEFT_OUT)):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_string("loire.made_by", f"loire {__version__}")
    writer.add_string("loire.made_from", name_of(checkpoint.path))
    for name, value in report.items():
        writer.add_float32(f"loire.{name}", value)
    places = {(info.path, info.offset): info for info in checkpoint.tensors.values()}
    blocks = {
        name: tensor
        for piece in pieces
        for name, tensor in piece.items()
        if isinstance(tensor, StoredTensor)
    }
    made = {
        name: rounded
        for name, tensor in source.tensors.items()
        if (rounded := _rounded(tensor, places, blocks)) is not None
    }
    for name, tensor in source.tensors.items():
        info: GGUFTensor | StoredTensor = made.get(name, tensor)
        size = info.blocks.nbytes if isinstance(info, StoredTensor) else info.num_bytes
        kind = gguf.GGMLQuantizationType[info.format.name]
        # (The shape in numbers, whatever type they have: bytes would be uint8.)
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in source.tensors.items():
        rounded = made.get(name)
        writer.write_tensor_data(_bytes_of(tensor) if rounded is None else rounded.blocks.numpy())
    writer.close()


def _rounded(
    tensor: GGUFTensor,
    places: Mapping[tuple[Path, int], TensorInfo],
    blocks: Mapping[str, StoredTensor],
) -> StoredTensor | None:
    """What takes a tensor's place, its rows in the order of the file; None: nothing does."""
    info = places.get((tensor.path, tensor.offset))
    found = None if info is None else blocks.get(info.name)
    if info is None or found is None or not info.interleaved_heads:
        return found
    return StoredTensor(found.format, _pairs(found.blocks, info.interleaved_heads))


def _pairs(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from halves (0, 1, ..., D/2, ...) to pairs (0, D/2, 1, ...)."""
    halves = rows.unflatten(0, (num_heads, 2, -1))
    pairs: Tensor = halves.transpose(1, 2).reshape(rows.shape)
    return pairs.contiguous()


def _bytes_of(tensor: GGUFTensor) -> NDArray[np.uint8]:
    return np.fromfile(tensor.path, np.uint8, tensor.num_bytes, offset=tensor.offset)
