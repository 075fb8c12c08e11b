"""Embedding and norms in plain torch, on any device: their definition."""

import torch
from torch import Tensor

from loire.kernels.interface import Table
from loire.kernels.reference_linear import ReferenceStoredLinear


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., E] normalised in float32, times weight (float32 [E]), in x's dtype."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


class ReferencePointwise:
    """See kernels.interface.PointwiseKernels."""

    def embed(
        self, token_ids: Tensor, table: Table, scale: float, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(rows), rows) of a table [V, E]."""
        if isinstance(table, Tensor):
            rows = table[token_ids].float()
        else:
            assert isinstance(table, ReferenceStoredLinear)
            rows = table.rows(token_ids)
        residual = rows * scale
        return self.rms_norm(residual, weight, eps).to(table.dtype), residual

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, E] (or [..., E]) normalised in float32, times weight."""
        return rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(x + residual), x + residual)."""
        residual = x + residual
        return self.rms_norm(residual, weight, eps).to(x.dtype), residual

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """x * sigmoid(gate)."""
        return (x.float() * gate.float().sigmoid()).to(x.dtype)
