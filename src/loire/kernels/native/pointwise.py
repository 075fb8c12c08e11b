"""Embedding and norms by the native library."""

import torch
from torch import Tensor

from loire.checkpoint.feed_forward import PlainActivation
from loire.kernels.interface import Table
from loire.kernels.native import calls
from loire.kernels.native.context import NativeContext, address
from loire.kernels.native.dtypes import type_number
from loire.kernels.native.linear import GATES, NativeLinear


class NativePointwise:
    """See kernels.interface.PointwiseKernels."""

    def __init__(self, context: NativeContext) -> None:
        self._context = context
        self._norm = context.library.norm
        self._embed = context.library.embed
        self._gate = context.library.gate
        self._combine = context.library.combine

    def embed(
        self, token_ids: Tensor, table: Table, scale: float, weight: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(rows), rows) of a table [V, E]. Raises EngineError for an id outside of it."""
        [tokens] = token_ids.shape
        numbers: Tensor | None = None
        packed: int | None = None
        if isinstance(table, Tensor):
            numbers = self._context.results.dense(table)
            vocab_size, size = table.shape
        else:
            assert isinstance(table, NativeLinear)
            vocab_size, size, packed = table.out_features, table.in_features, table.handle
        norm_size = size if weight is None else weight.numel()
        if token_ids.dtype is not torch.int64 or norm_size != size:
            raise ValueError(
                f"{token_ids.dtype} ids and a norm of {norm_size} do not fit a table of "
                f"{vocab_size} x {size}"
            )
        out = self._context.results.new((tokens, size), table.dtype)
        residual = self._context.results.new((tokens, size), torch.float32)
        call = calls.EmbedCall(
            token_ids=self._context.results.dense(token_ids).data_ptr(),
            table=address(numbers),
            packed=packed,
            weight=address(weight),
            residual=residual.data_ptr(),
            out=out.data_ptr(),
            tokens=tokens,
            size=size,
            vocab_size=vocab_size,
            type=type_number(table.dtype),
            table_scale=scale,
            eps=eps,
        )
        self._context.run(self._embed, call)
        return out, residual

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [..., E] normalised in float32, times weight (float32 [E]), in x's dtype."""
        x = self._context.results.dense(x)
        out = self._context.results.new(x.shape, x.dtype)
        self._normalise(x, None, weight, out, eps, 1.0)
        return out

    def add_rms_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        eps: float,
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(sum), sum) of (x + residual) * scale, written over x and residual."""
        if residual.dtype is not torch.float32 or not residual.is_contiguous():
            raise ValueError(f"the residual must be contiguous float32, but is {residual.dtype}")
        x = self._context.results.dense(x)
        self._normalise(x, residual, weight, x, eps, scale)
        return x, residual

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """x * sigmoid(gate), written over x."""
        x, gate = self._context.results.dense(x), self._context.results.dense(gate)
        (tokens, size), gate_size = x.shape, gate.shape[1]
        if len(gate) != tokens or gate_size not in (1, size) or gate.dtype is not x.dtype:
            raise ValueError(
                f"gates of {tuple(gate.shape)} ({gate.dtype}) do not fit x of {tuple(x.shape)} "
                f"({x.dtype})"
            )
        call = calls.GateCall(
            x=x.data_ptr(),
            gate=gate.data_ptr(),
            out=x.data_ptr(),
            tokens=tokens,
            size=size,
            gate_size=gate_size,
            type=type_number(x.dtype),
        )
        self._context.run(self._gate, call)
        return x

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y of [T, N], in x's dtype."""
        return self._combined(x, y, None)

    def gated(self, x: Tensor, y: Tensor, activation: PlainActivation) -> Tensor:
        """activation(x) * y of [T, N], in x's dtype."""
        return self._combined(x, y, activation)

    def _combined(self, x: Tensor, y: Tensor, activation: PlainActivation | None) -> Tensor:
        x = self._context.results.dense(x)
        tokens, size = x.shape
        wide = y.dtype is torch.float32
        if y.shape != x.shape or y.stride(1) != 1 or not (wide or y.dtype is x.dtype):
            raise ValueError(
                f"{y.dtype} of shape {tuple(y.shape)} does not go with {x.dtype} of shape "
                f"{tuple(x.shape)}"
            )
        out = self._context.results.new(x.shape, x.dtype)
        call = calls.CombineCall(
            x=x.data_ptr(),
            y=y.data_ptr(),
            out=out.data_ptr(),
            tokens=tokens,
            size=size,
            y_stride=y.stride(0),
            type=type_number(x.dtype),
            wide=wide,
            gate=GATES[activation],
        )
        self._context.run(self._combine, call)
        return out

    def _normalise(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        out: Tensor,
        eps: float,
        scale: float,
    ) -> None:
        size, elements = x.shape[-1] if weight is None else weight.numel(), x.numel()
        if x.shape[-1] != size or (residual is not None and residual.numel() != elements):
            raise ValueError(f"a norm of {size} weights does not fit x of shape {tuple(x.shape)}")
        call = calls.NormCall(
            x=x.data_ptr(),
            residual=address(residual),
            weight=address(weight),
            out=out.data_ptr(),
            tokens=elements // size,
            size=size,
            type=type_number(x.dtype),
            eps=eps,
            scale=scale,
        )
        self._context.run(self._norm, call)
