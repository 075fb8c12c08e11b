"""Where the results of native operations go."""

import torch
from torch import Tensor

from loire.base.errors import EngineError
from loire.kernels.native.workspace import Workspace


class Results:
    """Gives memory to results. While a step is recorded they are kept: it works on them again."""

    def __init__(self) -> None:
        self._workspace = Workspace()
        self._kept: list[Tensor] | None = None

    def keep_in(self, kept: list[Tensor] | None) -> None:
        """Where results are put from now on, so that they live on; None: nowhere."""
        self._kept = kept

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for the result of an operation."""
        result = self._workspace.empty(shape, dtype)
        if self._kept is not None:
            self._kept.append(result)
        return result

    def reserve(self, num_bytes: int) -> None:
        """Have memory ready for large results of so many bytes together."""
        self._workspace.reserve(num_bytes)

    def dense(self, x: Tensor) -> Tensor:
        """x without gaps. Raises EngineError while recording: a copy would not be replayed."""
        if x.is_contiguous():
            return x
        if self._kept is not None:
            raise EngineError(f"a recorded step needs tensors without gaps, not {x.stride()}")
        return x.contiguous()
