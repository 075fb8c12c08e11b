"""A weight packed by the native library, and the product with it."""

import weakref
from collections.abc import Sequence
from ctypes import addressof, c_int64, c_void_p

import torch
from torch import Tensor

from loire.base.config import Quantization
from loire.base.errors import ConfigError, EngineError
from loire.checkpoint.feed_forward import Activation
from loire.checkpoint.formats import Q4_1, Q4_K
from loire.kernels.block_formats import StoredTensor, unpack
from loire.kernels.native.calls import LinearCall, PackCall
from loire.kernels.native.dtypes import type_number
from loire.kernels.native.library import NativeLibrary, array_of
from loire.kernels.native.results import Results

FORMATS: dict[Quantization | None, int] = {None: 0, "int8": 8, "int4": 4}
STORED_FORMAT = 41
"""Of weights that stay in Q4_1 blocks. All are a WeightFormat of source/runtime/packed_weight.h."""
GATES: dict[Activation | None, int] = {None: -1, "silu": 0, "gelu_tanh": 1, "gelu": 2}
"""As in source/kernels/operations.h."""


class NativeLinear:
    """A weight in panels. linear.h and linear_quantized.h in source/kernels say how it lies and in
    which order products are added."""

    def __init__(
        self,
        owner: object,
        library: NativeLibrary,
        context: int,
        results: Results,
        parts: Sequence[Tensor],
        bias: Tensor | None,
        fmt: int,
        in_features: int,
        dtype: torch.dtype,
        gate: Activation | None,
    ) -> None:
        """owner: of the context, which is open as long as there is one.

        parts: rows of numbers, or of blocks. fmt: a WeightFormat of source/runtime/packed_weight.h.

        dtype: of the inputs and, where there are numbers, of those.
        """
        rows = sum(len(part) for part in parts)
        self.in_features = in_features
        self.out_features = rows if gate is None else rows // 2
        self._is_gated = gate is not None
        self._owner = owner
        self._results = results
        self._context = context
        self._library = library
        self._run = library.linear
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
        handle = library.pack(context, call)
        if handle is None:
            raise EngineError(
                f"a weight of {self.out_features} x {self.in_features} cannot be packed: "
                f"{library.last_message()}"
            )
        self._handle: int = handle
        weakref.finalize(self, library.free_weight, handle)

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

    def __call__(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        x = self._results.dense(x)
        tokens, size = x.shape
        if size != self.in_features or x.dtype is not self._dtype:
            raise ValueError(
                f"x is {tokens} x {size} {x.dtype}, but the weight takes "
                f"{self.in_features} {self._dtype}"
            )
        dtype = torch.float32 if wide else self._dtype
        out = self._results.new((tokens, self.out_features), dtype)
        call = LinearCall(
            weight=self._handle, x=x.data_ptr(), out=out.data_ptr(), tokens=tokens, wide=wide
        )
        if self._run(self._context, call):
            raise EngineError(f"native kernels: {self._library.last_message()}")
        return out


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
