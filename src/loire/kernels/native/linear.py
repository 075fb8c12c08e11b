"""Weights packed by the native library, the products with them, and adapters."""

import weakref
from collections.abc import Collection, Sequence
from ctypes import addressof, c_int64, c_void_p
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from loire.base.config import Quantization
from loire.base.errors import ConfigError, EngineError
from loire.checkpoint.feed_forward import Activation, ClampedSwiGLU, Routing, is_gate
from loire.checkpoint.formats import WeightFormat
from loire.kernels.block_formats import StoredTensor, share_levels
from loire.kernels.interface import (
    Expert,
    ExpertChunks,
    Experts,
    FlatBatch,
    Heads,
    Linear,
    LowRank,
    PackedAdapter,
    Ranks,
    Weight,
    parts_of,
)
from loire.kernels.native.calls import (
    AdaptCall,
    DequantizeCall,
    LinearCall,
    PackAdapterCall,
    PackCall,
)
from loire.kernels.native.context import NativeContext, adapter_numbers
from loire.kernels.native.dtypes import TYPES, type_number
from loire.kernels.native.experts import NativeExperts
from loire.kernels.native.heads import NativeHeads
from loire.kernels.native.library import array_of
from loire.kernels.native.ranks import NativeSummedLinear
from loire.kernels.reference_linear import check_adapter_number, check_low_rank

NUMBERS: dict[Quantization | None, int] = {None: 0, "int8": 8, "int4": 4}
BLOCKS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11,
          "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18,
          "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "MXFP4": 39, "W4_128": 60,
          "W4Z_128": 61, "W4Z_32": 62, "W8_128": 63, "P2": 64, "P3": 65, "P4": 66,
          "F8_128": 67, "NV4_128": 68}  # fmt: skip
"""Numbers of GGUF and of Loire's own, as in source/kernels/operations.h."""
FIRST_BLOCKS = 100
"""What is added to those in a WeightFormat of source/runtime/packed_weight.h."""
LEVELS = 16
"""Of a row, as in source/kernels/operations.h."""
MOST_PARTS = 3
"""Of a packed weight, as in source/kernels/operations.h."""
GATES: dict[Activation | None, int] = {
    None: -1,
    "silu": 0,
    "gelu_tanh": 1,
    "gelu": 2,
    "squared_relu": 4,
}
"""As in source/kernels/operations.h."""
_CLAMPED_SWIGLU = 3


class NativeAdapter:
    """See PackedAdapter: in the panels of one weight."""

    def __init__(self, context: NativeContext, handle: int) -> None:
        self.handle = handle
        self.num_bytes: int = context.library.adapter_bytes(handle)
        """Bytes that it takes in memory."""
        weakref.finalize(self, context.library.free_adapter, handle)


class NativeLinear:
    """A weight in panels, its rows all stored in one way. In source/kernels linear.h,
    linear_quantized.h and packed_blocks.h say how it lies and in which order products are added."""

    def __init__(
        self,
        context: NativeContext,
        parts: Sequence[Weight],
        bias: Tensor | None,
        dtype: torch.dtype,
        quantization: Quantization | None,
        gate: Activation | None,
    ) -> None:
        """dtype: of the inputs and, where there are numbers, of those."""
        self.num_rows = sum(part.shape[0] for part in parts)
        """Outputs before a gate."""
        self.in_features = parts[0].shape[1]
        has_gate = gate is not None and is_gate(gate)
        self.out_features = self.num_rows // 2 if has_gate else self.num_rows
        self.dtype = dtype
        self._context = context
        self._run = context.library.linear
        if not self.out_features * self.in_features:
            raise ConfigError(f"a weight of {self.out_features} x {self.in_features} is empty")
        data = [part.blocks if isinstance(part, StoredTensor) else part for part in parts]
        data = [part if part.stride(1) == 1 else part.contiguous() for part in data]
        if any(part.shape[1:] != data[0].shape[1:] or part.dtype != data[0].dtype for part in data):
            raise ValueError("the parts of a weight differ in their inputs or dtypes")
        bias = None if bias is None else bias.to(dtype).contiguous()
        rows_at = array_of(c_void_p, [part.data_ptr() for part in data])
        outputs = array_of(c_int64, [len(part) for part in data])
        strides = array_of(c_int64, [part.stride(0) for part in data])
        order = parts[0].order if isinstance(parts[0], StoredTensor) else None
        order = None if order is None else order.to(torch.int32)
        levels = [_padded_levels(part) for part in parts]
        levels_at = array_of(c_void_p, [None if x is None else x.data_ptr() for x in levels])
        call = PackCall(
            parts=addressof(rows_at),
            part_outputs=addressof(outputs),
            row_strides=addressof(strides),
            levels=addressof(levels_at),
            bias=None if bias is None else bias.data_ptr(),
            order=None if order is None else order.data_ptr(),
            in_features=self.in_features,
            num_parts=len(data),
            type=type_number(dtype),
            format=_format_number(parts[0], quantization),
            gate=_CLAMPED_SWIGLU if isinstance(gate, ClampedSwiGLU) else GATES[gate],
            gate_alpha=gate.alpha if isinstance(gate, ClampedSwiGLU) else 0.0,
            gate_limit=gate.limit if isinstance(gate, ClampedSwiGLU) else 0.0,
        )
        handle = context.library.pack(context.handle, call)
        if handle is None:
            raise EngineError(
                f"a weight of {self.out_features} x {self.in_features} cannot be packed: "
                f"{context.library.last_message()}"
            )
        self.handle: int = handle
        self.weight_bytes: int = context.library.weight_bytes(handle)
        """Bytes that one multiplication reads of it: whole panels and steps."""
        self._adapters: dict[int, NativeAdapter] = {}
        """Those that the library has been given stay for as long."""
        weakref.finalize(self, context.library.free_weight, handle)

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        x = self._context.results.dense(x)
        dtype = torch.float32 if wide else self.dtype
        out = self._context.results.new((x.shape[0], self.out_features), dtype)
        self.put(x, batch, out, 0, wide=wide)
        return out

    def put(
        self, x: Tensor, batch: FlatBatch | None, out: Tensor, column: int, *, wide: bool
    ) -> None:
        """Of x [T, in] without gaps into columns of out [T, ...], from `column` on. out is float32
        if wide, else of the inputs' dtype."""
        tokens, size = x.shape
        if size != self.in_features or x.dtype is not self.dtype:
            raise ValueError(
                f"x is {tokens} x {size} {x.dtype}, but the weight takes "
                f"{self.in_features} {self.dtype}"
            )
        call = LinearCall(
            weight=self.handle,
            x=x.data_ptr(),
            out=out.data_ptr() + column * out.itemsize,
            adapters=adapter_numbers(batch, tokens),
            tokens=tokens,
            out_stride=out.shape[1],
            wide=wide,
        )
        self._context.run(self._run, call)

    def pack_adapter(self, parts: Sequence[LowRank]) -> NativeAdapter:
        """See Linear.pack_adapter(). Keeps nothing of the given tensors."""
        check_low_rank(parts, self.in_features, self.num_rows, self.dtype)
        downs = [part.down.contiguous() for part in parts]
        ups = [part.up.contiguous() for part in parts]
        downs_at = array_of(c_void_p, [down.data_ptr() for down in downs])
        ups_at = array_of(c_void_p, [up.data_ptr() for up in ups])
        ranks = array_of(c_int64, [len(down) for down in downs])
        firsts = array_of(c_int64, [part.first for part in parts])
        outputs = array_of(c_int64, [len(up) for up in ups])
        call = PackAdapterCall(
            weight=self.handle,
            downs=addressof(downs_at),
            ups=addressof(ups_at),
            ranks=addressof(ranks),
            firsts=addressof(firsts),
            outputs=addressof(outputs),
            num_parts=len(parts),
        )
        library = self._context.library
        handle = library.pack_adapter(self._context.handle, call)
        if handle is None:
            raise EngineError(f"an adapter cannot be packed: {library.last_message()}")
        return NativeAdapter(self._context, handle)

    def adapt(self, number: int, adapter: PackedAdapter | None) -> None:
        """See Linear.adapt()."""
        check_adapter_number(number)
        assert adapter is None or isinstance(adapter, NativeAdapter), "another weight packed this"
        handle = None if adapter is None else adapter.handle
        call = AdaptCall(weight=self.handle, adapter=handle, number=number)
        self._context.run(self._context.library.adapt, call)
        self._adapters.pop(number, None)
        if adapter is not None:
            self._adapters[number] = adapter


def _padded_levels(part: Weight) -> Tensor | None:
    """int8 [rows, 16] of a part whose rows have levels of their own."""
    if not isinstance(part, StoredTensor) or part.levels is None:
        return None
    return F.pad(part.levels, (0, LEVELS - part.format.num_levels)).contiguous()


def _with_tables(parts: list[Weight]) -> list[list[Weight]]:
    """Parts that are stored alike, each by itself where together their rows do not lie so that
    kernels can look up eight of them in one table."""
    stored = [part for part in parts if isinstance(part, StoredTensor)]
    return [parts] if share_levels(stored, 1) else [[part] for part in parts]


def _packable(parts: Sequence[Weight], halves: int) -> Sequence[Weight]:
    """The same, in eight bits where not even the rows of one part lie so, as of heads that are put
    in another order: the same numbers, times inputs in eight bits."""
    stored = [part for part in parts if isinstance(part, StoredTensor)]
    if share_levels(stored, halves):
        return parts
    return [part.in_eight_bits() for part in stored]


def _format_number(part: Weight, quantization: Quantization | None) -> int:
    if isinstance(part, StoredTensor):
        return FIRST_BLOCKS + BLOCKS[part.format.name]
    return NUMBERS[quantization]


@dataclass(frozen=True, slots=True)
class StackedAdapter:
    """See PackedAdapter: for each product of a stack, None where it gets nothing."""

    parts: tuple[NativeAdapter | None, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in memory."""
        return sum(part.num_bytes for part in self.parts if part is not None)


class StackedNativeLinear:
    """Products of the same inputs, their results side by side."""

    def __init__(self, context: NativeContext, parts: Sequence[NativeLinear]) -> None:
        self.in_features = parts[0].in_features
        self.out_features = sum(part.out_features for part in parts)
        self.dtype = parts[0].dtype
        self._context = context
        self._parts = parts
        self._columns = tuple(accumulate((part.out_features for part in parts), initial=0))

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of them."""
        return sum(part.weight_bytes for part in self._parts)

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        x = self._context.results.dense(x)
        dtype = torch.float32 if wide else self.dtype
        out = self._context.results.new((x.shape[0], self.out_features), dtype)
        for part, column in zip(self._parts, self._columns, strict=False):
            part.put(x, batch, out, column, wide=wide)
        return out

    def pack_adapter(self, parts: Sequence[LowRank]) -> StackedAdapter:
        """See Linear.pack_adapter(): each product gets the outputs that are its own."""
        check_low_rank(parts, self.in_features, self.out_features, self.dtype)
        packed: list[NativeAdapter | None] = []
        for product, first in zip(self._parts, self._columns, strict=False):
            end = first + product.out_features
            own = [
                LowRank(
                    part.down,
                    part.up[max(first - part.first, 0) : max(end - part.first, 0)],
                    max(part.first - first, 0),
                )
                for part in parts
            ]
            own = [part for part in own if len(part.up)]
            packed.append(product.pack_adapter(own) if own else None)
        return StackedAdapter(tuple(packed))

    def adapt(self, number: int, adapter: PackedAdapter | None) -> None:
        """See Linear.adapt()."""
        assert adapter is None or isinstance(adapter, StackedAdapter), "another weight packed this"
        parts = [None] * len(self._parts) if adapter is None else adapter.parts
        for product, part in zip(self._parts, parts, strict=True):
            product.adapt(number, part)


def stored_alike(parts: Sequence[Weight]) -> list[list[Weight]]:
    """Neighbours that are stored alike, as many as can be packed together."""

    def alike(one: Weight, other: Weight) -> bool:
        if isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
            return one.lies_as(other)
        return isinstance(one, Tensor) and isinstance(other, Tensor)

    found: list[list[Weight]] = []
    for part in parts:
        if found and alike(found[-1][0], part) and len(found[-1]) < MOST_PARTS:
            found[-1].append(part)
        else:
            found.append([part])
    return found


class NativeLinearKernels:
    """See kernels.interface.LinearKernels."""

    copies_weights = True

    def __init__(self, context: NativeContext) -> None:
        self._context = context

    def keeps(self, formats: Collection[WeightFormat], dtype: torch.dtype) -> bool:
        """All that are known."""
        known = all(fmt.block_elements == 1 or fmt.name in BLOCKS for fmt in formats)
        return known and dtype in TYPES

    def pack(
        self,
        weight: Weight | Sequence[Weight],
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        quantization: Quantization | None = None,
        gate: Activation | None = None,
    ) -> Linear:
        """Pack weight [out, in] into panels; nothing of the given tensors is kept."""
        parts = parts_of(weight)
        if dtype is None:
            numbers = [part.dtype for part in parts if isinstance(part, Tensor)]
            if not numbers:
                raise ValueError("a weight in blocks does not say what dtype its inputs have")
            dtype = numbers[0]
        groups = stored_alike(parts)
        if gate is None:
            groups = [some for group in groups for some in _with_tables(group)]
        if gate is not None and len(groups) > 1:
            raise ValueError("the halves of a gated weight must be stored alike")
        biases: Sequence[Tensor | None] = [None] * len(groups)
        if bias is not None:
            biases = bias.split([sum(part.shape[0] for part in group) for group in groups])
        halves = 2 if gate is not None and is_gate(gate) else 1
        linears = [
            NativeLinear(self._context, _packable(group, halves), own, dtype, quantization, gate)
            for group, own in zip(groups, biases, strict=True)
        ]
        return linears[0] if len(linears) == 1 else StackedNativeLinear(self._context, linears)

    def experts(
        self,
        experts: Sequence[Expert | None],
        routing: Routing,
        bias: Tensor | None = None,
        scales: Tensor | None = None,
        chunks: ExpertChunks | None = None,
    ) -> Experts:
        """All of them by one call of the library."""
        return NativeExperts(self._context, experts, routing, bias, scales, chunks)

    def heads(self, products: Sequence[Linear]) -> Heads:
        """All of them by one call of the library."""
        return NativeHeads(self._context, products)

    def summed(self, products: Sequence[Linear], bias: Tensor | None, ranks: Ranks) -> Linear:
        """All of them by one call of the library."""
        return NativeSummedLinear(self._context, products, bias, ranks)

    def dequantize(self, data: memoryview, fmt: WeightFormat, dtype: torch.dtype) -> Tensor:
        """See kernels.dequantize. Raises ValueError if data are not whole blocks of the format."""
        blocks, rest = divmod(len(data), fmt.block_bytes)
        if rest or fmt.name not in BLOCKS:
            raise ValueError(
                f"{len(data)} bytes are not blocks of {fmt.block_bytes} bytes ({fmt.name})"
            )
        kernel_dtype = dtype if dtype in TYPES else torch.float32
        out = torch.empty(blocks * fmt.block_elements, dtype=kernel_dtype)
        call = DequantizeCall(
            blocks=np.frombuffer(data, dtype=np.uint8).ctypes.data,
            out=out.data_ptr(),
            elements=out.numel(),
            type=TYPES[kernel_dtype],
            format=BLOCKS[fmt.name],
        )
        self._context.run(self._context.library.dequantize, call)
        return out.to(dtype)
