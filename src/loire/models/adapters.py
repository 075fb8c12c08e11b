"""Adapters' weights as the products of a decoder take them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from loire.checkpoint.adapter import Adapter
from loire.kernels.interface import LowRank
from loire.models.decoder import Decoder
from loire.models.tensors import TensorReader

AdapterWeights = Mapping[str, Sequence[LowRank]]
"""By the names of products."""


def read_adapter(adapter: Adapter, decoder: Decoder, device: torch.device) -> AdapterWeights:
    """What an adapter adds, in the dtypes of the products, on their device.

    Raises CheckpointError if its file cannot be read.
    """
    halves = [info for part in adapter.parts for info in (part.down, part.up)]
    reader = TensorReader({info.name: info for info in halves})
    found: dict[str, list[LowRank]] = defaultdict(list)
    for part in adapter.parts:
        product = decoder.products[part.target.product]
        up = reader.read(part.up.name, torch.float32) * part.scale
        low_rank = LowRank(
            down=reader.read(part.down.name, product.dtype).to(device),
            up=up.to(product.dtype).to(device),
            first=part.target.first,
        )
        found[part.target.product].append(low_rank)
    return found


def adapt(decoder: Decoder, number: int, weights: AdapterWeights) -> None:
    """From now on tokens with this number have the adapter. Not while a step computes."""
    for name, parts in weights.items():
        decoder.products[name].adapt(number, parts)


def drop_adapter(decoder: Decoder, number: int, names: Sequence[str]) -> None:
    """The number is nobody's any more; names: of the products that had something of it."""
    for name in names:
        decoder.products[name].adapt(number, ())
