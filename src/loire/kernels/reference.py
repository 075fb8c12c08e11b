"""The backend in plain torch, on any device: the definition. Others must agree with it."""

import torch

from loire.kernels.interface import Backend, ComputeStep
from loire.kernels.ranks import join
from loire.kernels.reference_attention import ReferenceAttention
from loire.kernels.reference_linear import ReferenceLinearKernels
from loire.kernels.reference_pointwise import ReferencePointwise
from loire.kernels.reference_recurrent import ReferenceRecurrent
from loire.kernels.reference_transfers import ReferenceTransfers
from loire.kernels.sampling import ReferenceSampling


def no_capture(compute: ComputeStep) -> ComputeStep:
    """See kernels.interface.GraphCapture: as it is."""
    return compute


class ReferenceBackend(Backend):
    """See kernels.interface.Backend."""

    def __init__(self) -> None:
        super().__init__(
            name="reference",
            numbers=f"torch {torch.__version__}",
            linear=ReferenceLinearKernels(),
            attention=ReferenceAttention(),
            recurrent=ReferenceRecurrent(),
            pointwise=ReferencePointwise(),
            sampling=ReferenceSampling(),
            transfers=ReferenceTransfers(),
            capture=no_capture,
            join=join,
        )
