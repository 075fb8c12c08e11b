"""Embedding and norms in plain torch, on any device: their definition."""

import torch
from torch import Tensor

from loire.checkpoint.feed_forward import PlainActivation
from loire.kernels.interface import Table
from loire.kernels.reference_linear import ReferenceStoredLinear, activated


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., E] normalised in float32, times weight (float32 [E]), in x's dtype."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


class ReferencePointwise:
    """See kernels.interface.PointwiseKernels."""

    def embed(
        self, token_ids: Tensor, table: Table, scale: float, weight: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(rows), rows) of a table [V, E]."""
        if isinstance(table, Tensor):
            rows = table[token_ids].float()
        else:
            assert isinstance(table, ReferenceStoredLinear)
            rows = table.rows(token_ids)
        residual = rows * scale
        normed = residual if weight is None else self.rms_norm(residual, weight, eps)
        return normed.to(table.dtype), residual

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, E] (or [..., E]) normalised in float32, times weight."""
        return rms_norm(x, weight, eps)

    def add_rms_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        eps: float,
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(sum), sum) of (x + residual) * scale."""
        residual = (x + residual) * scale
        normed = residual if weight is None else self.rms_norm(residual, weight, eps)
        return normed.to(x.dtype), residual

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y of [T, N], in x's dtype."""
        return (x.float() + y.float()).to(x.dtype)

    def gated(self, x: Tensor, y: Tensor, activation: PlainActivation) -> Tensor:
        """activation(x) * y of [T, N], in x's dtype."""
        return (activated(x.float(), activation) * y.float()).to(x.dtype)

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """x * sigmoid(gate)."""
        return (x.float() * gate.float().sigmoid()).to(x.dtype)
