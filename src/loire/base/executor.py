"""Who computes steps: the seam between the engine's loop and execution."""

from dataclasses import dataclass
from typing import Protocol

from loire.base.step import StepPlan, StepResult


class PendingStep(Protocol):
    """A step on its way."""

    def result(self) -> StepResult:
        """Wait for it. Raises what computing it raised. Asked again, it says the same."""
        ...


class StepExecutor(Protocol):
    """Computes steps, in the order in which they are given.

    After a step that raised, it computes others: whatever that one left undone, the plans that
    follow tell again.
    """

    def launch(self, plan: StepPlan) -> PendingStep:
        """Begin to compute a step; may return before it is done, or when it is. May raise, too."""
        ...


@dataclass(frozen=True, slots=True)
class ComputedStep:
    """A step of an executor that computes while it is launched."""

    value: StepResult

    def result(self) -> StepResult:
        """What it gave."""
        return self.value
