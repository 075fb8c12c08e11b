"""Adapters' weights as the products of a decoder take them."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from loire.checkpoint.adapter import Adapter, open_adapter
from loire.checkpoint.checkpoint import TensorInfo
from loire.kernels.interface import LowRank, PackedAdapter
from loire.models.decoder import Decoder

AdapterWeights = dict[str, PackedAdapter]
"""By the names of products."""

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_adapter(
    path: Path, decoder: Decoder, device: torch.device
) -> tuple[Adapter, AdapterWeights]:
    """An adapter, and what it adds to the products of a decoder; on any thread.

    Raises as open_adapter().
    """
    halves: dict[str, Tensor] = {}

    def take(info: TensorInfo, data: bytearray) -> None:
        numbers = torch.frombuffer(data, dtype=_DTYPES[info.format.name])
        halves[info.name] = numbers.view(info.shape)

    adapter = open_adapter(path, decoder.description, take)
    found: dict[str, list[LowRank]] = defaultdict(list)
    for part in adapter.parts:
        name, dtype = part.target.product, decoder.products[part.target.product].dtype
        up = halves.pop(part.up.name).float() * part.scale
        low_rank = LowRank(
            down=halves.pop(part.down.name).to(device, dtype),
            up=up.to(device, dtype),
            first=part.target.first,
        )
        found[name].append(low_rank)
    return adapter, {
        name: decoder.products[name].pack_adapter(parts) for name, parts in found.items()
    }


def adapt(decoder: Decoder, number: int, weights: AdapterWeights) -> None:
    """From now on tokens with this number have the adapter. Not while a step computes."""
    for name, packed in weights.items():
        decoder.products[name].adapt(number, packed)


def drop_adapter(decoder: Decoder, number: int, names: Iterable[str]) -> None:
    """The number is nobody's any more; names: of the products that had something of it."""
    for name in names:
        decoder.products[name].adapt(number, None)
