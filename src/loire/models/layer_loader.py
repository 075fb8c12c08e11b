"""Weights out of a checkpoint, one layer's at a time, for those who build its parts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loire.base.config import Quantization
from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.feed_forward import Activation
from loire.checkpoint.formats import Q4_1, Q4_K
from loire.checkpoint.mixers import RopeDescription
from loire.checkpoint.weights import Matrix, Role, Vector, Weight
from loire.kernels.dequantize import fastest_dequantize
from loire.kernels.interface import Backend, Linear, RotaryTable
from loire.kernels.quantization import elements_of_q4_1
from loire.models.rotary import rotary_table
from loire.models.tensors import TensorReader

Tensors = dict[str, Tensor]


class WeightReader:
    """Reads weights as the model computes with them."""

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        *,
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend,
        quantization: Quantization | None,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.backend = backend
        self.quantization = quantization
        self._tensors = tensors
        self._reader = TensorReader(tensors, fastest_dequantize(backend))

    def read(self, weights: Sequence[Weight]) -> Tensors:
        """Their tensors on the host by name, in float32 (vectors), the model's dtype, or in the
        blocks of the file where they stay so."""
        found: Tensors = {}
        for weight in weights:
            if isinstance(weight, Vector):
                found[weight.name] = self._reader.read(weight.name, torch.float32)
                continue
            found |= self._read_matrix(weight)
        return found

    def _read_matrix(self, weight: Matrix) -> Tensors:
        numbers = weight.stored_weights(self._tensors)
        biases = set(weight.stored_names(self._tensors)) - set(numbers)
        found = {name: self._reader.read(name, self.dtype) for name in biases}
        # What the backend copies into a form of its own may lie in the mapped file until then.
        on_host = self.device.type == "cpu"
        may_share = weight.role != "embedding" and self.backend.copies_weights and on_host
        for name in numbers:
            if self._stays_as_stored(weight):
                blocks = self._reader.read_blocks(name)
                found[name] = blocks if may_share else blocks.clone()
            else:
                found[name] = self._reader.read(name, self.dtype, may_share=may_share)
        return found

    def linear(
        self,
        parts: Sequence[Tensor],
        bias: Tensor | None,
        *,
        role: Role = "product",
        gate: Activation | None = None,
    ) -> Linear:
        """The product with a weight [outputs, inputs] in parts; gate as in Backend.linear()."""
        if parts[0].dtype is torch.uint8:
            return self.backend.stored_linear(parts, bias, dtype=self.dtype, gate=gate)
        quantization = self.quantization
        if role == "head" and quantization is not None:
            # The distribution over tokens is what quantization hurts most: 8 bits at least.
            quantization = "int8"
        weight = parts[0] if len(parts) == 1 else parts
        return self.backend.linear(weight, bias, quantization=quantization, gate=gate)

    def _stays_as_stored(self, weight: Matrix) -> bool:
        """Whether it is kept in the four bits of the file, in all its parts."""
        if self.quantization != "int4" or weight.role != "product":
            return False
        formats = [self._tensors[name].format for name in weight.stored_weights(self._tensors)]
        return all(fmt in (Q4_1, Q4_K) for fmt in formats)


class LayerLoader:
    """Hands out the weights of one layer, checking their shapes, and lets go of each."""

    def __init__(
        self, reader: WeightReader, tensors: Tensors, norm_eps: float, rotary: "RotaryTables"
    ) -> None:
        self.norm_eps = norm_eps
        self.rotary = rotary
        self._reader = reader
        self._tensors = tensors

    def vector(self, weight: Vector) -> Tensor:
        """float32 [size], offset included."""
        return self._take(weight.name, (weight.size,)) + weight.offset

    def matrix(self, weight: Matrix) -> list[Tensor]:
        """[outputs, inputs], in the parts that the file has it in."""
        pieces = weight.pieces(self._tensors)
        return [self._take(f"{name}.weight", (rows, weight.inputs)) for name, rows in pieces]

    def linear(self, weight: Matrix, gate: Activation | None = None) -> Linear:
        """The product with it; gate as in Backend.linear()."""
        bias = None
        if weight.bias:
            pieces = weight.pieces(self._tensors)
            parts_of_bias = [self._take(f"{name}.bias", (rows,)) for name, rows in pieces]
            bias = parts_of_bias[0] if len(parts_of_bias) == 1 else torch.cat(parts_of_bias)
        return self._reader.linear(self.matrix(weight), bias, role=weight.role, gate=gate)

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return shaped(name, self._tensors.pop(name), shape).to(self._reader.device)


class RotaryTables:
    """One table for each rotary embedding, however many layers have it."""

    def __init__(self, num_positions: int, device: torch.device) -> None:
        self._num_positions = num_positions
        self._device = device
        self._tables: dict[RopeDescription, RotaryTable] = {}

    def __call__(self, rope: RopeDescription) -> RotaryTable:
        """Its table."""
        if rope not in self._tables:
            self._tables[rope] = rotary_table(rope, self._num_positions, self._device)
        return self._tables[rope]


def shaped(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor. Raises CheckpointError if it has another shape."""
    found = tuple(tensor.shape)
    if tensor.dtype is torch.uint8:
        found = (found[0], elements_of_q4_1(found[1]))
    if found != shape:
        raise CheckpointError(f"tensor {name!r} has the shape {found}, but the model needs {shape}")
    return tensor
