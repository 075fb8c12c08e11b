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

    The others are computed up to what the last layer that keeps anything keeps of them: nothing
    after that is read.
    """

    tokens: Tensor
    """int64 [W]: indices of tokens in the flat batch, ascending."""
    batches: Sequence[FlatBatch]
    """Of these alone, in rows of their own, as each cache group has them; none where there are no
    tokens. (Of groups that none of the layers from there on reads, anything.)"""
    plans: Sequence[AttentionPlan | None]
    """For attend() of these alone; None of a group of states."""


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
