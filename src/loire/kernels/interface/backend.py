"""A way of computing, composed of what does each kind of operation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from loire.kernels.interface.attention import AttentionKernels
from loire.kernels.interface.capture import GraphCapture
from loire.kernels.interface.linear import LinearKernels
from loire.kernels.interface.pointwise import PointwiseKernels
from loire.kernels.interface.ranks import Meeting, Ranks
from loire.kernels.interface.recurrent import RecurrentKernels
from loire.kernels.interface.sampling import SamplingKernels
from loire.kernels.interface.transfers import Transfers


@dataclass(eq=False)
class Backend:
    """A device's kernels. loire.kernels.reference defines what each part computes, and is what a
    device without its own takes."""

    name: str
    numbers: str
    """What computes, as far as bits depend on it: its results are kept for none but itself."""
    linear: LinearKernels
    attention: AttentionKernels
    recurrent: RecurrentKernels
    pointwise: PointwiseKernels
    sampling: SamplingKernels
    transfers: Transfers
    capture: GraphCapture
    join: Callable[[Meeting], Ranks]
    """Meets the other ranks; waits for none of them."""
    batch_invariant_dtypes: frozenset[torch.dtype] = frozenset()
    """Dtypes for which a row's result is the same bits in any batch, chunking and block layout."""
    torch_threads: int | None = None
    """Threads for PyTorch's own operators during a step; None leaves them as they are."""
    reserve: Callable[[int, int], None] = lambda num_tokens, num_bytes: None
    """Has memory ready for steps of so many tokens over the weights packed before, whose operations
    give so many bytes at once."""
