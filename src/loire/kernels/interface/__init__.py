"""The operations of a forward pass that cost time, as protocols: a Backend has one of each.

Letters in shapes:
    T  tokens in the step (flat, rows one after another, no padding)
    R  rows in the step (one per sequence)
    M  most blocks in a row's block table
    E  hidden size        I  intermediate size       V  vocabulary size
    H  query heads        K  key/value heads         D  head dimension
    N  blocks in the KV pool                         S  tokens per block
    C  channels of a convolution                     W  its width

attention.plan() is called once per step, attend() once per layer with its plan (as FlashInfer
does), so that whatever the layers share is worked out once.
"""

from loire.kernels.interface.attention import (
    AttentionKernels,
    AttentionPlan,
    AttentionShape,
    HeadNorms,
    LayerCache,
    RotaryTable,
)
from loire.kernels.interface.backend import Backend
from loire.kernels.interface.batch import AdapterRows, FlatBatch, HostBatch
from loire.kernels.interface.capture import ComputeStep, GraphCapture, Wanted
from loire.kernels.interface.linear import (
    Expert,
    ExpertChunks,
    Experts,
    Heads,
    Linear,
    LinearKernels,
    LowRank,
    PackedAdapter,
    Table,
    Weight,
    parts_of,
)
from loire.kernels.interface.pointwise import PointwiseKernels
from loire.kernels.interface.ranks import Meeting, Ranks
from loire.kernels.interface.recurrent import (
    DeltaNetShape,
    DeltaNetWeights,
    Mamba2Shape,
    Mamba2Weights,
    RecurrentKernels,
    StateCache,
    StatePlaces,
)
from loire.kernels.interface.sampling import (
    Chosen,
    LogitEdits,
    Penalties,
    SamplingKernels,
    SamplingRows,
)
from loire.kernels.interface.transfers import Transfers

__all__ = [
    "AdapterRows",
    "AttentionKernels",
    "AttentionPlan",
    "AttentionShape",
    "Backend",
    "Chosen",
    "ComputeStep",
    "DeltaNetShape",
    "DeltaNetWeights",
    "Expert",
    "ExpertChunks",
    "Experts",
    "FlatBatch",
    "GraphCapture",
    "HeadNorms",
    "Heads",
    "HostBatch",
    "LayerCache",
    "Linear",
    "LinearKernels",
    "LogitEdits",
    "LowRank",
    "Mamba2Shape",
    "Mamba2Weights",
    "Meeting",
    "PackedAdapter",
    "Penalties",
    "PointwiseKernels",
    "Ranks",
    "RecurrentKernels",
    "RotaryTable",
    "SamplingKernels",
    "SamplingRows",
    "StateCache",
    "StatePlaces",
    "Table",
    "Transfers",
    "Wanted",
    "Weight",
    "parts_of",
]
