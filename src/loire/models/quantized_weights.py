"""Quantized weights of safetensors files, put together: as numbers, or in blocks of Loire's own."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import QuantizedWeight, TensorInfo
from loire.checkpoint.formats import F8_128, NV4_128, W4_128, W8_128, WeightFormat
from loire.kernels.block_formats import MXFP4_VALUES, StoredTensor, pack_groups, pack_nv4

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
    if weight.factor is not None:  # (The values of FP4's codes are doubled.)
        factor = read(weight.factor).float()
        scales = 0.5 * (scales / factor if weight.divides else scales * factor)
    _check_finite(weight.scales, scales)
    is_signed = weight.layout in ("plain", "fp4")
    zeros: Tensor | float = 0.0 if is_signed else float(1 << (weight.bits - 1))
    if weight.middle is not None:
        found = _zero_points(weight, read(weight.middle), outputs)
        if not bool((found == zeros).all()):
            raise CheckpointError(
                f"{weight.middle.path}: tensor {weight.middle.name!r} holds zero points other than "
                f"{zeros:.0f}, but config.json says that the weights are symmetric"
            )
    if weight.zeros is not None:
        zeros = _zero_points(weight, read(weight.zeros), outputs)
        if weight.layout == "words" and not 0 <= zeros.min() <= zeros.max() < 1 << weight.bits:
            raise CheckpointError(
                f"{weight.zeros.path}: tensor {weight.zeros.name!r} holds zero points that no code "
                f"of {weight.bits} bits has"
            )
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

    (NVFP4's, where they are divided, but for the last bit of float32.) Raises CheckpointError as
    read_grouped(), and for numbers in FP8 that are none.
    """
    if info.format is NV4_128:
        return StoredTensor(info.format, _nv4_blocks(info, read))
    weight = read_grouped(info, read)
    order = None
    if info.quantized is not None and info.quantized.groups is not None:
        order = torch.argsort(weight.groups, stable=True)
        codes = _columns(weight.codes, order)
        weight = replace(weight, groups=weight.groups[order], codes=codes)
    if info.format is F8_128 and int((weight.codes.view(torch.uint8) & 127).max()) == 127:
        raise CheckpointError(f"{info.path}: tensor {info.name!r} holds numbers that are none")
    return StoredTensor(info.format, _blocks(weight, info.format), order)


def _check_finite(info: TensorInfo, scales: Tensor) -> None:
    if not bool(torch.isfinite(scales).all()):
        raise CheckpointError(f"{info.path}: tensor {info.name!r} holds scales that are not finite")


def _nv4_blocks(info: TensorInfo, read: Read) -> Tensor:
    """Of codes, scales and the number for all of them, as they are."""
    weight = info.quantized
    assert weight is not None
    assert weight.factor is not None
    factor, scales = read(weight.factor).float(), read(weight.scales)
    number = 0.5 / factor if weight.divides else 0.5 * factor  # (for doubled values of codes)
    _check_finite(weight.scales, scales.float() * number)
    return pack_nv4(_unpack(read(weight.codes), 4), scales, number)


def _columns(codes: Tensor, order: Tensor) -> Tensor:
    """Columns of codes of eight bits in another order. (numpy gathers bytes five times as fast as
    torch, if it need not look for wrong indices.)"""
    data = codes.view(torch.uint8).numpy()
    return torch.from_numpy(np.take(data, order.numpy(), axis=1, mode="clip")).view(codes.dtype)


def _blocks(weight: GroupedWeight, fmt: WeightFormat) -> Tensor:
    firsts = weight.groups[:: fmt.block_elements]
    zeros = weight.zeros[:, firsts] if isinstance(weight.zeros, Tensor) else weight.zeros
    codes = weight.codes
    if fmt is W8_128 and isinstance(zeros, Tensor):
        each = zeros.to(torch.uint8).repeat_interleave(fmt.block_elements, dim=1)
        codes = (codes - each).view(torch.int8)
    elif fmt is W8_128 and codes.dtype is torch.uint8:
        codes = (codes - int(zeros)).view(torch.int8)
    elif fmt is W4_128 and int(zeros) != 8:  # of two and three bits: around the middle of four
        codes = codes + (8 - int(zeros))
    return pack_groups(fmt, codes, weight.scales[:, firsts], zeros)


def _codes(weight: QuantizedWeight, stored: Tensor) -> Tensor:
    """[outputs, inputs] or more."""
    if weight.layout == "plain":
        return stored
    if weight.layout == "fp4":
        return torch.tensor(MXFP4_VALUES, dtype=torch.int8)[_unpack(stored, 4).long()]
    if weight.layout == "words":
        return _unpack(stored, weight.bits)
    if weight.layout == "awq":
        return _unpack_awq(stored)
    return _unpack(stored.T.contiguous(), weight.bits)


def _zero_points(weight: QuantizedWeight, stored: Tensor, outputs: int) -> Tensor:
    """float32 [outputs, groups], those of codes without a sign."""
    if weight.layout == "plain":
        return stored.float()
    if stored.dtype is torch.int8:
        return stored.float() + float(1 << weight.bits - 1)
    if weight.layout == "awq":
        zeros = _unpack_awq(stored)
    elif weight.layout == "words":
        zeros = _unpack(stored.T.contiguous(), weight.bits).T
    else:
        zeros = _unpack(stored, weight.bits).T
    # (One less than 0 is stored with all bits set.)
    found = zeros[:outputs] + weight.zero_offset & (1 << weight.bits) - 1
    return found.float()


def _unpack(words: Tensor, bits: int) -> Tensor:
    """Codes of words int32 or bytes [n, m], the lowest bits first: uint8 [n, all of them]."""
    data = words.contiguous().view(torch.uint8)
    if bits == 8:
        return data
    if bits in (2, 4):  # each byte widened, and its codes moved into bytes of their own
        codes = data.to(torch.int16 if bits == 4 else torch.int32)
        for shift in (4,) if bits == 4 else (12, 6):
            codes |= codes << shift
        codes &= 0x0F0F if bits == 4 else 0x03030303
        return codes.view(torch.uint8)
    # Codes lie across the borders of bytes: so many bytes hold eight of them.
    eights = F.pad(data, (0, -data.shape[1] % bits)).unflatten(1, (-1, bits)).long()
    whole = sum(eights[..., i] << 8 * i for i in range(bits))
    assert isinstance(whole, Tensor)
    each = [(whole >> bits * i & ((1 << bits) - 1)).to(torch.uint8) for i in range(8)]
    return torch.stack(each, dim=-1).flatten(1)


def _unpack_awq(words: Tensor) -> Tensor:
    """Codes of words int32 [n, m] in AWQ's order, the other way round: uint8 [m * 8, n]."""
    turned = words.T.contiguous()
    codes = torch.empty(len(turned), 8, len(words), dtype=torch.uint8)
    for output, place in enumerate(_AWQ_ORDER):
        codes[:, output] = turned >> 4 * place & 15
    return codes.flatten(0, 1)


def _per_output(values: Tensor, weight: QuantizedWeight, outputs: int, num_groups: int) -> Tensor:
    """[outputs, groups] of one for all, for each output, or for blocks of outputs and inputs."""
    if values.numel() == 1:
        return values.reshape(1, 1).expand(outputs, num_groups)
    if values.ndim == 1:
        return values[:, None]
    if weight.rows_per_scale > 1:
        return values.repeat_interleave(weight.rows_per_scale, dim=0)[:outputs]
    return values
