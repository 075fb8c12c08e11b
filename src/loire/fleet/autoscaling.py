"""How many replicas a load needs: a pure function of what waits, for Ray and for the simulator.

Up: more prompt tokens wait than the replicas are meant to have waiting. Down, one at a time: for a
while almost nothing waited, and the replicas that stay would not be full.
"""

import math
from dataclasses import dataclass

from loire.base.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """The policy.

    Attributes:
        target_queued_tokens: prompt tokens that may wait per replica.
        max_occupancy: share of slots or KV memory in use that the replicas which stay may reach.
        down_after_s: how long fewer replicas must have been enough.
    """

    min_replicas: int = 1
    max_replicas: int = 8
    target_queued_tokens: float = 8000.0
    max_occupancy: float = 0.7
    down_after_s: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"from {self.min_replicas} to {self.max_replicas} replicas is no range: it begins "
                f"at 1 or above and does not fall"
            )
        if self.target_queued_tokens <= 0 or not 0 < self.max_occupancy <= 1:
            raise ConfigError("queued tokens must be above 0, occupancy a share above 0")


@dataclass(frozen=True, slots=True)
class Demand:
    """What a fleet has to do now.

    Attributes:
        queued_tokens: prompt tokens of requests that nothing is computed of yet, over all replicas.
        occupancy: share of slots or of KV memory in use, whichever is larger; mean over replicas.
    """

    queued_tokens: float
    occupancy: float


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there should be; give it to the next decision. low_since_s: the time from
    which on fewer would have been enough."""

    num_replicas: int
    low_since_s: float | None = None


def decide(
    policy: Autoscaling, demand: Demand, num_replicas: int, last: Decision, now_s: float
) -> Decision:
    """The next decision. num_replicas: those that run or start. now_s: of any clock."""
    allowed = min(max(num_replicas, policy.min_replicas), policy.max_replicas)
    needed = math.ceil(demand.queued_tokens / policy.target_queued_tokens)
    if needed > allowed:
        # At most twice as many at once: what waits now may be gone when they are there.
        return Decision(min(needed, 2 * allowed, policy.max_replicas))
    if allowed == policy.min_replicas or not _fewer_are_enough(policy, demand, allowed):
        return Decision(allowed)
    since_s = now_s if last.low_since_s is None else last.low_since_s
    if now_s - since_s < policy.down_after_s:
        return Decision(allowed, since_s)
    return Decision(allowed - 1, now_s)


def _fewer_are_enough(policy: Autoscaling, demand: Demand, num_replicas: int) -> bool:
    fewer = num_replicas - 1
    waiting = demand.queued_tokens / fewer
    occupancy = demand.occupancy * num_replicas / fewer
    return waiting <= policy.target_queued_tokens / 10 and occupancy <= policy.max_occupancy
