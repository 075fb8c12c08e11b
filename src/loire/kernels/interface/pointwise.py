"""Operations on each token by itself."""

from typing import Protocol

from torch import Tensor

from loire.checkpoint.feed_forward import PlainActivation
from loire.kernels.interface.linear import Table


class PointwiseKernels(Protocol):
    """Embedding, norms, sums and gates. All return new tensors unless they say otherwise."""

    def embed(
        self, token_ids: Tensor, table: Table, scale: float, weight: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(rows), rows), both [T, E]: the table's rows (table [V, E]) of token_ids (int64
        [T]) times scale, in float32, and the first layer's input in the table's dtype.

        Without a weight that input is the rows, only rounded."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, E] normalised in float32, times weight (float32 [E]), in x's dtype.

        Zhang & Sennrich 2019, "Root mean square layer normalization".
        """
        ...

    def add_rms_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        eps: float,
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(sum), sum) of (x + residual) * scale. May overwrite both arguments.

        The residual stream, float32 [T, E], is not rounded from layer to layer; the norm is in
        x's dtype. Without a weight the sum is rounded to that and no more.
        """
        ...

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """x * sigmoid(gate), in float32, rounded to the dtype of both; gate [T, E] or [T, 1] for
        x [T, E]. May overwrite x."""
        ...

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, both [T, N], added in float32, in x's dtype. y: of x's dtype or float32, its rows
        perhaps apart."""
        ...

    def gated(self, x: Tensor, y: Tensor, activation: PlainActivation) -> Tensor:
        """activation(x) * y, computed in float32, in x's dtype. x, y: as in add()."""
        ...
