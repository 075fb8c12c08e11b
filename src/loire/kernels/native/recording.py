"""Steps of few tokens, replayed: one call of the library instead of nine per layer.

Calling an operation from Python takes 4 to 10 microseconds, which is a sixth of a decode step of a
small model. A step of T tokens always calls the same operations in the same order, so the first one
is recorded, with the memory it used, and the next ones are run from the recording: their inputs are
copied into that memory, and only the attention plans are others. (CUDA graphs do the same.)
"""

import weakref
from collections.abc import Sequence
from ctypes import Array, c_void_p
from dataclasses import dataclass, replace

from torch import Tensor

from loire.kernels.interface import AdapterRows, AttentionPlan, ComputeStep, FlatBatch, Wanted
from loire.kernels.native.attention import NativePlan
from loire.kernels.native.context import NativeContext

MOST_TOKENS = 8
"""Of recorded steps. Each keeps all its intermediate results, and more tokens gain less."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A recording, and the memory it works on."""

    handle: int
    token_ids: Tensor
    batches: tuple[FlatBatch, ...]
    kept: list[Tensor]
    out: Tensor


class RecordedSteps:
    """ComputeStep by recordings, one for each number of tokens, with adapters and without.

    Adapters may have other weights when a step is replayed, and tokens other adapters.
    """

    def __init__(self, context: NativeContext, compute: ComputeStep) -> None:
        self._context = context
        self._compute = compute
        self._steps: dict[tuple[int, bool], _Step] = {}

    def __call__(
        self,
        token_ids: Tensor,
        batches: Sequence[FlatBatch],
        plans: Sequence[AttentionPlan],
        wanted: Wanted | None,
    ) -> Tensor:
        """Hidden states [T, E], or [W, E] of the wanted."""
        tokens = token_ids.shape[0]  # (a third of what len() takes)
        if tokens > MOST_TOKENS or wanted is not None:
            return self._compute(token_ids, batches, plans, wanted)
        key = tokens, batches[0].adapters is not None
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = self._record(token_ids, batches, plans)
            return step.out.clone()
        step.token_ids.copy_(token_ids)
        step.batches[0].positions.copy_(batches[0].positions)
        for mine, given in zip(step.batches, batches, strict=True):
            mine.slots.copy_(given.slots)
        mine, given = step.batches[0], batches[0]
        if mine.adapters is not None and given.adapters is not None:
            mine.adapters.numbers.copy_(given.adapters.numbers)
        if self._context.library.replay(self._context.handle, step.handle, _handles(plans)):
            raise self._context.error()
        return step.out.clone()

    def _record(
        self,
        token_ids: Tensor,
        given: Sequence[FlatBatch],
        plans: Sequence[AttentionPlan],
    ) -> _Step:
        token_ids, kept = token_ids.clone(), list[Tensor]()
        positions, adapters = given[0].positions.clone(), given[0].adapters
        if adapters is not None:
            adapters = AdapterRows(adapters.numbers.clone())
        batches = tuple(
            replace(batch, positions=positions, slots=batch.slots.clone(), adapters=adapters)
            for batch in given
        )
        library, context = self._context.library, self._context.handle
        handle = library.record(context, _handles(plans), len(plans))
        if handle is None:
            raise self._context.error()
        weakref.finalize(self, library.free_recording, handle)
        self._context.results.keep_in(kept)
        try:
            out = self._compute(token_ids, batches, plans, None)
        finally:
            self._context.results.keep_in(None)
            library.end_recording(context)
        return _Step(handle, token_ids, batches, kept, out)


def _handles(plans: Sequence[AttentionPlan]) -> "Array[c_void_p]":
    """Of plans, in an array for the library."""
    handles = []
    for plan in plans:
        assert isinstance(plan, NativePlan)
        handles.append(plan.handle)
    return (c_void_p * len(handles))(*handles)


class NativeCapture:
    """See kernels.interface.GraphCapture: steps of few tokens are replayed."""

    def __init__(self, context: NativeContext) -> None:
        self._context = context

    def __call__(self, compute: ComputeStep) -> ComputeStep:
        """The same function."""
        return RecordedSteps(self._context, compute)
