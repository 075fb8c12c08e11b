"""What is simulated, and what comes of it."""

from dataclasses import dataclass, field

from loire.fleet.autoscaling import Autoscaling
from loire.fleet.simulated_replica import ReplicaOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """The fleet.

    Attributes:
        replicas: at the start.
        fronts: processes that place requests, each knowing only what it sent itself.
        tells_blocks: whether replicas tell all fronts what they have cached.
        startup_s: from the decision for a replica until it takes requests.
        decide_every_s: time between two decisions on their number.
    """

    replicas: int = 1
    routing: str = "work"
    fronts: int = 1
    tells_blocks: bool = False
    replica: ReplicaOptions = field(default_factory=ReplicaOptions)
    autoscaling: Autoscaling | None = None
    startup_s: float = 60.0
    decide_every_s: float = 10.0
    seed: int = 0


@dataclass(slots=True)
class Served:
    """What became of a request; times in seconds after the start."""

    arrival_s: float
    num_prompt: int
    num_output: int
    num_cached: int = 0
    first_token_s: float | None = None
    end_s: float | None = None
    num_moves: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at some time."""

    time_s: float
    num_replicas: int
    num_requests: int
    queued_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation gave."""

    options: FleetOptions
    served: list[Served]
    samples: list[Sample]
    end_s: float
    replica_s: float
    """Sum over the replicas of the time that they were there, starting included."""
    busy_s: float
    num_steps: int
    num_preemptions: int
    hit_bound: float
    """Share of prompt tokens that one cache without limit would have had."""
    requests_per_replica: tuple[int, ...]
