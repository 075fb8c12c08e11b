"""Weights packed by the native library, the products with them, and adapters."""

import weakref
from collections.abc import Collection, Sequence
from ctypes import addressof, c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor

from loire.base.config import Quantization
from loire.base.errors import ConfigError, EngineError
from loire.checkpoint.feed_forward import Activation
from loire.checkpoint.formats import Q4_1, Q4_K, WeightFormat
from loire.kernels.block_formats import StoredTensor, unpack
from loire.kernels.dequantize import dequantize_by_library
from loire.kernels.interface import FlatBatch, Linear, LowRank, Weight, parts_of
from loire.kernels.native.calls import AdaptCall, DequantizeCall, LinearCall, PackCall
from loire.kernels.native.context import NativeContext
from loire.kernels.native.dtypes import TYPES, type_number
from loire.kernels.native.library import array_of
from loire.kernels.reference_linear import check_low_rank

FORMATS: dict[Quantization | None, int] = {None: 0, "int8": 8, "int4": 4}
STORED_FORMAT = 41
"""Of weights that stay in Q4_1 blocks. All are a WeightFormat of source/runtime/packed_weight.h."""
GATES: dict[Activation | None, int] = {None: -1, "silu": 0, "gelu_tanh": 1, "gelu": 2}
"""As in source/kernels/operations.h."""
_BLOCK_FORMATS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13,
                  "Q6_K": 14}  # fmt: skip
"""Numbers of GGUF, as in source/kernels/operations.h."""


class NativeLinear:
    """A weight in panels. linear.h and linear_quantized.h in source/kernels say how it lies and in
    which order products are added."""

    def __init__(
        self,
        context: NativeContext,
        parts: Sequence[Tensor],
        bias: Tensor | None,
        fmt: int,
        in_features: int,
        dtype: torch.dtype,
        gate: Activation | None,
    ) -> None:
        """parts: rows of numbers, or of blocks. fmt: a WeightFormat of
        source/runtime/packed_weight.h.

        dtype: of the inputs and, where there are numbers, of those.
        """
        self._num_rows = sum(len(part) for part in parts)
        self.in_features = in_features
        self.out_features = self._num_rows if gate is None else self._num_rows // 2
        self._is_gated = gate is not None
        self._context = context
        self._run = context.library.linear
        self._dtype = dtype
        self._format = fmt
        if not self.out_features * self.in_features:
            raise ConfigError(f"a weight of {self.out_features} x {self.in_features} is empty")
        parts = [part if part.stride(1) == 1 else part.contiguous() for part in parts]
        if any(
            part.shape[1:] != parts[0].shape[1:] or part.dtype != parts[0].dtype for part in parts
        ):
            raise ValueError("the parts of a weight differ in their inputs or dtypes")
        bias = None if bias is None else bias.to(dtype).contiguous()
        rows_at = array_of(c_void_p, [part.data_ptr() for part in parts])
        outputs = array_of(c_int64, [len(part) for part in parts])
        strides = array_of(c_int64, [part.stride(0) for part in parts])
        call = PackCall(
            parts=addressof(rows_at),
            part_outputs=addressof(outputs),
            row_strides=addressof(strides),
            bias=None if bias is None else bias.data_ptr(),
            in_features=self.in_features,
            num_parts=len(parts),
            type=type_number(dtype),
            format=fmt,
            gate=GATES[gate],
        )
        handle = context.library.pack(context.handle, call)
        if handle is None:
            raise EngineError(
                f"a weight of {self.out_features} x {self.in_features} cannot be packed: "
                f"{context.library.last_message()}"
            )
        self._handle: int = handle
        weakref.finalize(self, context.library.free_weight, handle)

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of it: whole panels and steps."""
        steps = -(-self.in_features // 32)
        outputs = -(-self.out_features // 32) * 32 * (1 + self._is_gated)
        if self._format == FORMATS[None]:
            return outputs * steps * 32 * self._dtype.itemsize
        if self._format == FORMATS["int8"]:
            return outputs * (steps * 32 + 4)
        return outputs * steps * (18 if self._format == FORMATS["int4"] else 20)

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        x = self._context.results.dense(x)
        tokens, size = x.shape
        if size != self.in_features or x.dtype is not self._dtype:
            raise ValueError(
                f"x is {tokens} x {size} {x.dtype}, but the weight takes "
                f"{self.in_features} {self._dtype}"
            )
        dtype = torch.float32 if wide else self._dtype
        out = self._context.results.new((tokens, self.out_features), dtype)
        call = LinearCall(
            weight=self._handle,
            x=x.data_ptr(),
            out=out.data_ptr(),
            adapters=None if batch is None else _adapters(batch, tokens),
            tokens=tokens,
            wide=wide,
        )
        self._context.run(self._run, call)
        return out

    def adapt(self, number: int, parts: Sequence[LowRank]) -> None:
        """See Linear.adapt(). Keeps nothing of the given tensors."""
        check_low_rank(number, parts, self.in_features, self._num_rows, self._dtype)
        downs = [part.down.contiguous() for part in parts]
        ups = [part.up.contiguous() for part in parts]
        downs_at = array_of(c_void_p, [down.data_ptr() for down in downs])
        ups_at = array_of(c_void_p, [up.data_ptr() for up in ups])
        ranks = array_of(c_int64, [len(down) for down in downs])
        firsts = array_of(c_int64, [part.first for part in parts])
        outputs = array_of(c_int64, [len(up) for up in ups])
        call = AdaptCall(
            weight=self._handle,
            downs=addressof(downs_at),
            ups=addressof(ups_at),
            ranks=addressof(ranks),
            firsts=addressof(firsts),
            outputs=addressof(outputs),
            number=number,
            num_parts=len(parts),
        )
        self._context.run(self._context.library.adapt, call)


def _adapters(batch: FlatBatch, tokens: int) -> int | None:
    """Where the numbers of the tokens' adapters lie."""
    if batch.adapters is None:
        return None
    numbers = batch.adapters.numbers
    if numbers.shape != (tokens,) or numbers.dtype is not torch.int32:
        raise ValueError(
            f"{tokens} tokens have int32 adapters each, not {tuple(numbers.shape)} {numbers.dtype}"
        )
    return numbers.data_ptr()


class NativeLinearKernels:
    """See kernels.interface.LinearKernels."""

    copies_weights = True

    def __init__(self, context: NativeContext) -> None:
        self._context = context

    def keeps(self, formats: Collection[WeightFormat], dtype: torch.dtype) -> bool:
        """Q4_1 and Q4_K, whose scales are rounded to Q4_1's, for bfloat16."""
        return dtype is torch.bfloat16 and all(fmt in (Q4_1, Q4_K) for fmt in formats)

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
        stored = [q4_1_blocks(part) for part in parts if isinstance(part, StoredTensor)]
        if stored:
            if len(stored) < len(parts) or dtype is None:
                raise ValueError("blocks are not packed with numbers, nor without a dtype")
            size = parts[0].shape[1]
            return NativeLinear(self._context, stored, bias, STORED_FORMAT, size, dtype, gate)
        numbers = [part for part in parts if isinstance(part, Tensor)]
        fmt, size, dtype = FORMATS[quantization], numbers[0].shape[1], numbers[0].dtype
        return NativeLinear(self._context, numbers, bias, fmt, size, dtype, gate)

    def dequantize(self, data: memoryview, fmt: WeightFormat, dtype: torch.dtype) -> Tensor:
        """See kernels.dequantize. Raises ValueError if data are not whole blocks of the format."""
        blocks, rest = divmod(len(data), fmt.block_bytes)
        if rest or fmt.block_elements == 1:
            raise ValueError(
                f"{len(data)} bytes are not blocks of {fmt.block_bytes} bytes ({fmt.name})"
            )
        if fmt.name not in _BLOCK_FORMATS:
            return dequantize_by_library(data, fmt, dtype)
        kernel_dtype = dtype if dtype in TYPES else torch.float32
        out = torch.empty(blocks * fmt.block_elements, dtype=kernel_dtype)
        call = DequantizeCall(
            blocks=np.frombuffer(data, dtype=np.uint8).ctypes.data,
            out=out.data_ptr(),
            elements=out.numel(),
            type=TYPES[kernel_dtype],
            format=_BLOCK_FORMATS[fmt.name],
        )
        self._context.run(self._context.library.dequantize, call)
        return out.to(dtype)


def q4_1_blocks(weight: StoredTensor) -> Tensor:
    """Rows of a weight in Q4_1 or Q4_K as rows of Q4_1 blocks, uint8 [out, bytes of a row].

    The codes are kept. Of Q4_K, scales and minimums are rounded to half precision.
    """
    if weight.format is Q4_1:
        return weight.blocks
    taken = unpack(weight.blocks, weight.format)
    assert weight.format is Q4_K
    assert taken.minimums is not None
    halves = torch.stack([taken.scales, taken.minimums], dim=2).half().view(torch.uint8)
    codes = taken.codes.view(torch.uint8)
    nibbles = codes[..., :16] | codes[..., 16:] << 4
    return torch.cat([halves, nibbles], dim=2).flatten(1)
