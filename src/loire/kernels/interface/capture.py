"""Steps as a whole, and doing the same one again with less effort."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from loire.kernels.interface.attention import AttentionPlan
from loire.kernels.interface.batch import FlatBatch


@dataclass(frozen=True, slots=True)
class Wanted:
    """The tokens of a step whose last hidden states are asked for, fewer than all.

    The others are computed up to the last layer's keys and values: nothing after those is read.
    """

    tokens: Tensor
    """int64 [W]: indices of tokens in the flat batch, ascending."""
    batch: FlatBatch | None
    """Of these alone, in rows of their own, as the last mixer's cache group has it; None where
    there are none."""
    plan: AttentionPlan | None
    """For attend() of these alone; None where there are none, or the last mixer has a state."""


ComputeStep = Callable[
    [Tensor, Sequence[FlatBatch], Sequence[AttentionPlan | None], Wanted | None], Tensor
]
"""From token ids (int64 [T]), and the batch with its plan as each cache group has them, to the last
hidden states [T, E], or [W, E] of the wanted.

The batches of the groups differ in slots and block tables alone. Groups of states may have no
plan.
"""


class GraphCapture(Protocol):
    """Turns a step into the same function, perhaps with less effort when it is called again.

    The step must do nothing but call the backend's operations, always the same ones.
    """

    def __call__(self, compute: ComputeStep) -> ComputeStep:
        """The same function."""
        ...
