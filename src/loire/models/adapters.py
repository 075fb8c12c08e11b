"""Adapters' weights as the products of a decoder take them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from loire.checkpoint.adapter import Adapter, AdapterPart, open_adapter
from loire.checkpoint.checkpoint import TensorInfo
from loire.kernels.interface import Linear, LowRank, PackedAdapter
from loire.models.adaptable import Shares, side_by_side
from loire.models.decoder import Decoder

AdapterWeights = list[tuple[Linear, PackedAdapter]]
"""Products, each once, and what is added to them."""

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

    adapter = open_adapter(path, decoder.whole, take)
    found: dict[Linear, list[LowRank]] = {}
    for part in adapter.parts:
        down, up = halves.pop(part.down.name), halves.pop(part.up.name)
        for name, whole in _of_weights(part, down, up):
            for product, share in _shares(decoder, name, whole):
                dtype = product.dtype
                own = LowRank(share.down.to(device, dtype), share.up.to(device, dtype), share.first)
                found.setdefault(product, []).append(own)
    return adapter, [(product, product.pack_adapter(parts)) for product, parts in found.items()]


def _shares(decoder: Decoder, name: str, whole: LowRank) -> Shares:
    """What an addition to a weight adds to each product; of a rank's decoder, to its own rows and
    inputs."""
    adaptable, matrix = decoder.adaptable.get(name), decoder.cuts.get(name)
    if adaptable is None:
        return  # an expert that another rank has
    if matrix is None or matrix.cut is None:
        yield from adaptable.shares(whole)
        return
    first, end = matrix.cut.inputs
    for at, rows in matrix.rows_in(whole.first, whole.first + len(whole.up)):
        yield from adaptable.shares(LowRank(whole.down[:, first:end], whole.up[slice(*rows)], at))


def _of_weights(part: AdapterPart, down: Tensor, up: Tensor) -> Iterator[tuple[str, LowRank]]:
    """What a part adds to each weight that it is for, by their names; up in float32."""
    target, rank = part.target, part.rank
    up = up.float() * part.scale
    if not target.experts:
        yield target.product, LowRank(down, up, target.first)
        return
    downs, ups = down.view(target.experts, rank, -1), up.view(-1, rank, target.experts)
    for expert in range(target.experts):
        own = LowRank(downs[expert], ups[..., expert])
        if part.is_crossed:
            own = LowRank(own.up.T.contiguous(), own.down.T.float())
        if target.pairs and part.target.product.endswith("gate_up_proj"):
            own = LowRank(own.down, own.up[side_by_side(target.outputs)])
        yield target.product.format(expert), own


def adapt(number: int, weights: AdapterWeights) -> None:
    """From now on tokens with this number have the adapter. Not while a step computes."""
    for product, packed in weights:
        product.adapt(number, packed)


def drop_adapter(number: int, products: Iterable[Linear]) -> None:
    """The number is nobody's any more; products: those that had something of it."""
    for product in products:
        product.adapt(number, None)
