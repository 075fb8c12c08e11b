"""Quantized weights of safetensors files, put together: as numbers, or in blocks of Loire's own."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import QuantizedWeight, TensorInfo
from loire.checkpoint.formats import F8_128, WeightFormat
from loire.kernels.block_formats import StoredTensor, pack_groups

Read = Callable[[TensorInfo], Tensor]
"""The elements of a stored tensor, in its shape."""

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""In which four bits of a word AWQ keeps each of eight outputs."""


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """(codes - zeros) * scales, each scale for a group of inputs."""

    codes: Tensor
    """[outputs, inputs]: uint8, int8, or FP8."""
    scales: Tensor
    """float32 [outputs, groups]."""
    zeros: Tensor | float
    """Whole numbers, float32 [outputs, groups], or one for all."""
    groups: Tensor
    """int64 [inputs]."""

    def values(self) -> Tensor:
        """float32 [outputs, inputs]."""
        zeros = self.zeros[:, self.groups] if isinstance(self.zeros, Tensor) else self.zeros
        return (self.codes.float() - zeros) * self.scales[:, self.groups]


def read_grouped(info: TensorInfo, read: Read) -> GroupedWeight:
    """The parts of a quantized weight, unpacked. Raises CheckpointError for scales that are not
    finite, and for zero points that are not what the file says."""
    weight = info.quantized
    assert weight is not None
    outputs, inputs = info.shape
    codes = _codes(weight, read(weight.codes))[:outputs, :inputs]
    scales = read(weight.scales).float()
    if not bool(torch.isfinite(scales).all()):
        raise CheckpointError(
            f"{weight.scales.path}: tensor {weight.scales.name!r} holds scales that are not finite"
        )
    zeros: Tensor | float = float(1 << (weight.bits - 1)) if weight.layout != "plain" else 0.0
    if weight.middle is not None:
        found = _zero_points(weight, read(weight.middle), outputs)
        if not bool((found == zeros).all()):
            raise CheckpointError(
                f"{weight.middle.path}: tensor {weight.middle.name!r} holds zero points other than "
                f"{zeros:.0f}, but config.json says that the weights are symmetric"
            )
    if weight.zeros is not None:
        zeros = _zero_points(weight, read(weight.zeros), outputs)
    if weight.layout in ("awq", "gptq"):
        scales = scales.T
    num_groups = -(-inputs // weight.group_size)
    scales = _per_output(scales, weight, outputs, num_groups)
    if isinstance(zeros, Tensor):
        zeros = _per_output(zeros, weight, outputs, num_groups)
    if weight.groups is not None:
        groups = read(weight.groups).long()
    else:
        groups = torch.arange(inputs) // weight.group_size
    return GroupedWeight(codes, scales, zeros, groups)


def to_blocks(info: TensorInfo, read: Read) -> StoredTensor:
    """The weight in the block format that its TensorInfo names, the same numbers.

    Raises CheckpointError as read_grouped(), and for numbers in FP8 that are none.
    """
    weight = read_grouped(info, read)
    order = None
    if info.quantized is not None and info.quantized.groups is not None:
        order = torch.argsort(weight.groups, stable=True)
        groups, codes = weight.groups[order], weight.codes[:, order]
        weight = replace(weight, groups=groups, codes=codes)
    if info.format is F8_128 and int((weight.codes.view(torch.uint8) & 127).max()) == 127:
        raise CheckpointError(f"{info.path}: tensor {info.name!r} holds numbers that are none")
    return StoredTensor(info.format, _blocks(weight, info.format), order)


def _blocks(weight: GroupedWeight, fmt: WeightFormat) -> Tensor:
    firsts = weight.groups[:: fmt.block_elements]
    zeros = weight.zeros[:, firsts] if isinstance(weight.zeros, Tensor) else weight.zeros
    codes = weight.codes
    if codes.dtype is torch.uint8 and fmt.name == "W8_128":
        codes = (codes ^ 128).view(torch.int8)  # without the middle, 128
    return pack_groups(fmt, codes, weight.scales[:, firsts], zeros)


def _codes(weight: QuantizedWeight, stored: Tensor) -> Tensor:
    """[outputs, inputs] or more."""
    if weight.layout == "plain":
        return stored
    if weight.layout == "words":
        return _unpack(stored, weight.bits)
    if weight.layout == "awq":
        return _unpack_awq(stored).T.contiguous()
    return _unpack(stored.T.contiguous(), weight.bits)


def _zero_points(weight: QuantizedWeight, stored: Tensor, outputs: int) -> Tensor:
    """float32 [outputs, groups], those of codes without a sign."""
    if weight.layout == "plain":
        return stored.float()
    if weight.layout == "words":
        zeros = _unpack(stored.T.contiguous(), weight.bits)
    elif weight.layout == "awq":
        zeros = _unpack_awq(stored)
    else:
        zeros = _unpack(stored, weight.bits)
    points: Tensor = zeros[:, :outputs].T.float()
    return points + weight.zero_offset


def _unpack(words: Tensor, bits: int) -> Tensor:
    """Codes of words int32 [n, m], the lowest bits first: uint8 [n, m * 32 / bits]."""
    data = words.contiguous().view(torch.uint8)
    if bits == 8:
        return data
    # (One by one: with a tensor of shifts torch goes code by code.)
    codes = [data >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(codes, dim=-1).flatten(1)


def _unpack_awq(words: Tensor) -> Tensor:
    """Codes of words int32 [n, m] in AWQ's order: uint8 [n, m * 8]."""
    places = torch.tensor(_AWQ_ORDER)
    return _unpack(words, 4).view(len(words), -1, 8).index_select(2, places).flatten(1)


def _per_output(values: Tensor, weight: QuantizedWeight, outputs: int, num_groups: int) -> Tensor:
    """[outputs, groups] of one for all, for each output, or for blocks of outputs and inputs."""
    if values.numel() == 1:
        return values.reshape(1, 1).expand(outputs, num_groups)
    if values.ndim == 1:
        return values[:, None]
    if weight.rows_per_scale > 1:
        return values.repeat_interleave(weight.rows_per_scale, dim=0)[:outputs]
    return values
