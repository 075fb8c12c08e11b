"""Steps of few tokens, replayed: one call of the library instead of nine per layer.

Calling an operation from Python takes 4 to 10 microseconds, which is a sixth of a decode step of a
small model. A step of T tokens always calls the same operations in the same order, so the first one
is recorded, with the memory it used, and the next ones are run from the recording: their inputs are
copied into that memory, and only the attention plan is another. (CUDA graphs do the same.)
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from loire.base.errors import EngineError
from loire.kernels.interface import AttentionPlan, ComputeStep, FlatBatch, Wanted
from loire.kernels.native.library import NativeLibrary

MOST_TOKENS = 8
"""Of recorded steps. Each keeps all its intermediate results, and more tokens gain less."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A recording, and the memory it works on."""

    handle: int
    token_ids: Tensor
    batch: FlatBatch
    kept: list[Tensor]
    out: Tensor


class RecordedSteps:
    """ComputeStep by recordings, one for each number of tokens.

    keep: told where results go that must live on (None: nowhere). plan_handle: of a plan.
    """

    def __init__(
        self,
        library: NativeLibrary,
        context: int,
        compute: ComputeStep,
        keep: Callable[[list[Tensor] | None], None],
        plan_handle: Callable[[AttentionPlan], int],
    ) -> None:
        self._library = library
        self._context = context
        self._compute = compute
        self._keep = keep
        self._plan_handle = plan_handle
        self._steps: dict[int, _Step] = {}

    def __call__(
        self, token_ids: Tensor, batch: FlatBatch, plan: AttentionPlan, wanted: Wanted | None
    ) -> Tensor:
        """Hidden states [T, E], or [W, E] of the wanted."""
        tokens = len(token_ids)
        if tokens > MOST_TOKENS or wanted is not None:
            return self._compute(token_ids, batch, plan, wanted)
        step = self._steps.get(tokens)
        if step is None:
            step = self._steps[tokens] = self._record(token_ids, batch, plan)
            return step.out.clone()
        step.token_ids.copy_(token_ids)
        step.batch.positions.copy_(batch.positions)
        step.batch.slots.copy_(batch.slots)
        if self._library.replay(self._context, step.handle, self._plan_handle(plan)):
            raise EngineError(f"native kernels: {self._library.last_message()}")
        return step.out.clone()

    def _record(self, token_ids: Tensor, batch: FlatBatch, plan: AttentionPlan) -> _Step:
        token_ids, kept = token_ids.clone(), list[Tensor]()
        batch = replace(batch, positions=batch.positions.clone(), slots=batch.slots.clone())
        handle = self._library.record(self._context)
        if handle is None:
            raise EngineError(f"native kernels: {self._library.last_message()}")
        weakref.finalize(self, self._library.free_recording, handle)
        self._keep(kept)
        try:
            out = self._compute(token_ids, batch, plan, None)
        finally:
            self._keep(None)
            self._library.end_recording(self._context)
        return _Step(handle, token_ids, batch, kept, out)
