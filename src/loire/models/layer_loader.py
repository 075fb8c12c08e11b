"""Weights out of a checkpoint, one layer's at a time, for those who build its parts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loire.base.config import Quantization, WeightQuantization
from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.feed_forward import Activation
from loire.checkpoint.kept_blocks import rounded_to, stays_as_stored
from loire.checkpoint.mixers import RopeDescription
from loire.checkpoint.weights import Filters, Matrix, Role, Vector
from loire.checkpoint.weights import Weight as WeightDescription
from loire.kernels.interface import Backend, Linear, Meeting, Ranks, RotaryTable, Weight
from loire.models.adaptable import Adaptable, in_order
from loire.models.rotary import rotary_table
from loire.models.tensors import TensorReader

Tensors = dict[str, Weight]


class WeightReader:
    """Reads weights as the model computes with them."""

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        *,
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend,
        quantization: WeightQuantization,
        ranks: Ranks | None = None,
    ) -> None:
        """ranks: those that have the rest of what is cut."""
        self.dtype = dtype
        self.ranks = ranks or backend.join(Meeting(0, 1))
        self.device = device
        self.backend = backend
        self.quantization = quantization
        self.adaptable: dict[str, Adaptable] = {}
        """Weights by their names, with the products that were made of them."""
        self._tensors = tensors
        self._reader = TensorReader(tensors, backend.linear.dequantize)

    def read(self, weights: Sequence[WeightDescription]) -> Tensors:
        """Their tensors on the host by name, in float32 (vectors), the model's dtype, or in the
        blocks of the file where they stay so. Of cut ones, what is this rank's.

        Raises CheckpointError if a tensor that is cut has not the shape it should have.
        """
        found: Tensors = {}
        for weight in weights:
            if isinstance(weight, Vector | Filters):
                numbers = self._reader.read(weight.name, torch.float32)
                if isinstance(weight, Vector) and weight.whole_size is not None:
                    _check_shape(weight.name, numbers.shape, (weight.whole_size,))
                    numbers = numbers[weight.first : weight.first + weight.size]
                found[weight.name] = numbers
                continue
            found |= self._read_matrix(weight)
        return found

    def let_go(self, names: Iterable[str]) -> None:
        """Of what the files hold of these tensors, once weights have been made of them."""
        for name in names:
            self._reader.let_go(name)

    def _read_matrix(self, weight: Matrix) -> Tensors:
        found: Tensors = {}
        # What the backend copies into a form of its own may lie in the mapped file until then.
        on_host = self.device.type == "cpu"
        stays = self.stays_as_stored(weight)
        is_packed = stays or weight.role != "embedding"
        may_share = is_packed and self.backend.linear.copies_weights and on_host
        parts = weight.slices(self._tensors)
        for (name, rows), part in zip(weight.pieces(self._tensors), parts, strict=True):
            if weight.bias:
                found[f"{name}.bias"] = self._reader.read(f"{name}.bias", self.dtype, part=part)
            stored = f"{name}.weight"
            whole = (rows, weight.inputs) if part is None else part.shape
            _check_shape(stored, self._tensors[stored].shape, whole)
            if stays and self._tensors[stored].format.block_elements > 1:
                found[stored] = self._reader.read_blocks(stored, may_share=may_share, part=part)
            else:
                found[stored] = self._reader.read(
                    stored, self.dtype, may_share=may_share, part=part
                )
        return found

    def stays_as_stored(self, weight: Matrix) -> bool:
        """Whether blocks of the file are computed with as they are, in all its parts."""
        if self.quantization == "none":
            return False
        stored = [self._tensors[name] for name in weight.stored_weights(self._tensors)]
        keeps = self.backend.linear.keeps
        return stays_as_stored(weight, stored, lambda formats: keeps(formats, self.dtype))

    def rounding(self, weight: Matrix, role: Role | None = None) -> Quantization | None:
        """What a matrix is rounded to, or in another role (rounded_to())."""
        if self.quantization not in ("int8", "int4"):
            return None
        stored = [self._tensors[name] for name in weight.stored_weights(self._tensors)]
        return rounded_to(weight, stored, self.quantization, role)

    def linear(
        self,
        parts: Sequence[Weight],
        bias: Tensor | None,
        *,
        rounding: Quantization | None = None,
        gate: Activation | None = None,
    ) -> Linear:
        """The product with a weight [outputs, inputs] in parts; gate as in LinearKernels.pack()."""
        return self.backend.linear.pack(
            parts[0] if len(parts) == 1 else parts,
            bias,
            dtype=self.dtype,
            quantization=rounding,
            gate=gate,
        )

    def summed(
        self,
        parts: Sequence[Weight],
        chunks: Sequence[int],
        bias: Tensor | None,
        rounding: Quantization | None,
    ) -> Linear:
        """The product with a weight in one part, its inputs in chunks (LinearKernels.summed())."""
        [whole] = parts
        products, first = [], 0
        for size in chunks:
            chunk = columns_of(whole, first, first + size)
            products.append(self.linear([chunk], None, rounding=rounding))
            first += size
        return self.backend.linear.summed(products, bias, self.ranks)


class LayerLoader:
    """Hands out the weights of one layer, checking their shapes, and lets go of each."""

    def __init__(
        self, reader: WeightReader, tensors: Tensors, norm_eps: float, rotary: "RotaryTables"
    ) -> None:
        self.norm_eps = norm_eps
        self.dtype = reader.dtype
        self.kernels = reader.backend.linear
        self.pointwise = reader.backend.pointwise
        self.recurrent = reader.backend.recurrent
        self.ranks = reader.ranks
        self.rotary = rotary
        self._reader = reader
        self._tensors = tensors
        self._names = tuple(tensors)

    def done(self) -> None:
        """Everything has been made of what was read: the files' pages may go."""
        self._reader.let_go(self._names)

    def vector(self, weight: Vector) -> Tensor:
        """float32 [size], offset and factor included."""
        return (self._numbers(weight.name, (weight.size,)) + weight.offset) * weight.factor

    def ones(self, size: int) -> Tensor:
        """float32 [size]: of a norm without weights."""
        return torch.ones(size, device=self._reader.device)

    def filters(self, weight: Filters) -> Tensor:
        """float32 [channels, width]."""
        found = self._tensors[weight.name]
        if isinstance(found, Tensor) and found.ndim == 3 and found.shape[1] == 1:
            self._tensors[weight.name] = found[:, 0]
        return self._numbers(weight.name, (weight.channels, weight.width))

    def matrix(self, weight: Matrix) -> list[Weight]:
        """[outputs, inputs], in the parts that the file has it in, groups of rows put together."""
        pieces = weight.pieces(self._tensors)
        parts = [self._take(f"{name}.weight", (rows, weight.inputs)) for name, rows in pieces]
        return [_together(part, weight.interleaved) for part in parts]

    def bias(self, weight: Matrix) -> Tensor | None:
        """[outputs], in the same order; None if it has none."""
        if not weight.bias:
            return None
        pieces = weight.pieces(self._tensors)
        parts = [self._numbers(f"{name}.bias", (rows,)) for name, rows in pieces]
        return _rows_together(torch.cat(parts), weight.interleaved)

    def linear(
        self, weight: Matrix, gate: Activation | None = None, order: Tensor | None = None
    ) -> Linear:
        """The product with it; gate as in LinearKernels.pack(). order: int64 [outputs] of its rows,
        none going from one part of the weight to another."""
        rounding = self._reader.rounding(weight)
        bias, parts = self.bias(weight), self.matrix(weight)
        if order is not None:
            bias = None if bias is None else bias[order]
            parts = _reordered_parts(parts, order)
        if weight.chunks:
            made = self._reader.summed(parts, weight.chunks, bias, rounding)
        else:
            made = self._reader.linear(parts, bias, rounding=rounding, gate=gate)
        self.adapts(weight.name, in_order(made, file_rows(weight, order)))
        return made

    def adapts(self, name: str, weight: Adaptable) -> None:
        """Adapters of a weight of that name are for this."""
        self._reader.adaptable[name] = weight

    def linear_of(self, weight: Matrix, parts: Sequence[Weight], bias: Tensor | None) -> Linear:
        """The product with parts of a weight, perhaps put together with others."""
        return self._reader.linear(parts, bias, rounding=self._reader.rounding(weight))

    def table(self, weight: Matrix) -> Tensor:
        """[outputs, inputs] of a matrix that is looked up."""
        return self._numbers(f"{weight.name}.weight", (weight.outputs, weight.inputs))

    def _numbers(self, name: str, shape: tuple[int, ...]) -> Tensor:
        found = self._take(name, shape)
        assert isinstance(found, Tensor)
        return found

    def _take(self, name: str, shape: tuple[int, ...]) -> Weight:
        found = self._tensors.pop(name)
        _check_shape(name, found.shape, shape)
        return found.to(self._reader.device)


def file_rows(weight: Matrix, order: Tensor | None = None) -> Tensor | None:
    """Which row of the file's weight each row of LayerLoader.matrix() is, perhaps in an order of
    these (int64 [outputs]); None where all are where they were."""
    if not weight.interleaved:
        return order
    rows = _rows_together(torch.arange(weight.outputs), weight.interleaved)
    return rows if order is None else rows[order]


def _check_shape(name: str, found: Sequence[int], shape: tuple[int, ...]) -> None:
    if tuple(found) != shape:
        raise CheckpointError(
            f"tensor {name!r} has the shape {tuple(found)}, but the model needs {shape}"
        )


def columns_of(weight: Weight, first: int, end: int) -> Weight:
    """Some inputs of a weight: whole blocks."""
    if isinstance(weight, Tensor):
        return weight[:, first:end]
    per_input = weight.format.block_bytes / weight.format.block_elements
    bounds = int(first * per_input), int(end * per_input)
    assert weight.order is None, "inputs in another order are not cut"
    return replace(weight, blocks=weight.blocks[:, bounds[0] : bounds[1]])


def rows_of(weight: Weight, first: int, end: int) -> Weight:
    """Some rows of a weight."""
    if isinstance(weight, Tensor):
        return weight[first:end]
    return weight.rows(slice(first, end))


def reordered(weight: Weight, index: Tensor) -> Weight:
    """The rows of a weight in another order. index: int64 [rows]."""
    if isinstance(weight, Tensor):
        return weight[index]
    return weight.rows(index)


def _reordered_parts(parts: Sequence[Weight], order: Tensor) -> list[Weight]:
    found, first = [], 0
    for part in parts:
        end = first + part.shape[0]
        found.append(reordered(part, order[first:end] - first))
        first = end
    return found


def pairs_apart(rotary_dim: int) -> Tensor:
    """The order of rows (int64 [rotary_dim]) that brings rotary pairs from side by side to half the
    dimensions apart."""
    return torch.arange(rotary_dim).view(-1, 2).T.flatten()


def _together(weight: Weight, sizes: Sequence[int]) -> Weight:
    if isinstance(weight, Tensor):
        return _rows_together(weight, sizes)
    return weight.rows(_rows_together(torch.arange(weight.shape[0]), sizes)) if sizes else weight


def _rows_together(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows in groups of sizes[0] of this, sizes[1] of that and so on: this of all groups first."""
    if not sizes:
        return rows
    groups = rows.unflatten(0, (-1, sum(sizes))).split(list(sizes), dim=1)
    return torch.cat([part.flatten(0, 1) for part in groups])


class RotaryTables:
    """One table for each rotary embedding, however many layers have it."""

    def __init__(self, num_positions: int, device: torch.device) -> None:
        self.num_positions = num_positions
        self.device = device
        self._tables: dict[RopeDescription, RotaryTable] = {}

    def __call__(self, rope: RopeDescription) -> RotaryTable:
        """Its table."""
        if rope not in self._tables:
            self._tables[rope] = rotary_table(rope, self.num_positions, self.device)
        return self._tables[rope]
