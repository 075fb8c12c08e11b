"""Autoscaling by what waits (loire.fleet.autoscaling), as Ray Serve calls it.

Ray's own policy counts calls: an attached front is one call, however many requests it sends.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from loire.fleet.autoscaling import Autoscaling, Decision, Demand, decide

QUEUED_TOKENS = "queued_tokens"
OCCUPANCY = "occupancy"
_LOW_SINCE = "low_since_s"


class Context(Protocol):
    """What is read of Ray's AutoscalingContext."""

    current_time: float | None
    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    policy_state: dict[str, Any]

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None:
        """Name -> replica -> what it recorded, over the last while."""
        ...


class QueuedTokensPolicy:
    """See Autoscaling, whose range is Ray's."""

    def __init__(self, target_queued_tokens: float, down_after_s: float = 120.0) -> None:
        self._target = target_queued_tokens
        self._down_after_s = down_after_s

    def __call__(self, ctx: Context) -> tuple[int, dict[str, Any]]:
        """(replicas there should be, state for the next call)."""
        policy = Autoscaling(
            min_replicas=max(ctx.capacity_adjusted_min_replicas, 1),
            max_replicas=max(ctx.capacity_adjusted_max_replicas, 1),
            target_queued_tokens=self._target,
            down_after_s=self._down_after_s,
        )
        recorded = ctx.aggregated_metrics or {}
        occupancy = list(recorded.get(OCCUPANCY, {}).values())
        demand = Demand(
            queued_tokens=_total(recorded.get(QUEUED_TOKENS, {}).values()),
            # Replicas that have told nothing yet may be full.
            occupancy=_total(occupancy) / len(occupancy) if occupancy else 1.0,
        )
        last = Decision(ctx.target_num_replicas, ctx.policy_state.get(_LOW_SINCE))
        decision = decide(policy, demand, ctx.target_num_replicas, last, ctx.current_time or 0.0)
        return decision.num_replicas, {_LOW_SINCE: decision.low_since_s}


def _total(values: Iterable[float]) -> float:
    return float(sum(values))
