"""What a simulated fleet did, in figures."""

from dataclasses import asdict, dataclass

from loire.fleet.outcome import Outcome, Served
from loire.workloads.metrics import Objective, Percentiles


@dataclass(frozen=True, slots=True)
class FleetReport:
    """One fleet under one load. Times in seconds of simulated time, shares of 1."""

    routing: str
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    simulated_s: float
    hit_rate: float
    """Prompt tokens found in a cache, of all prompt tokens."""
    hit_bound: float
    """What one cache without limit would have had."""
    ttft_s: Percentiles
    tpot_s: Percentiles
    latency_s: Percentiles
    """From arrival to the last token."""
    goodput: float
    """Share of the requests that met the objective."""
    good_requests_per_s: float
    output_tokens_per_s: float
    mean_replicas: float
    most_replicas: int
    replica_hours: float
    busy_share: float
    """Time in steps, of the replicas' time."""
    imbalance: float
    """Requests of the busiest replica, over the mean."""
    num_moves: int
    num_preemptions: int
    num_steps: int
    cost_per_million_tokens: float | None
    """Prompt and output together; None without a price."""
    cost_per_million_output_tokens: float | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def summarize(
    outcome: Outcome, objective: Objective, *, price_per_hour: float | None = None
) -> FleetReport:
    """Sum up a simulation. price_per_hour: of one replica, in any currency."""
    served = outcome.served
    num_prompt = sum(request.num_prompt for request in served)
    num_output = sum(request.num_output for request in served)
    good = sum(_ttft(r) <= objective.ttft_s and _tpot(r) <= objective.tpot_s for r in served)
    hours = outcome.replica_s / 3600
    cost = None if price_per_hour is None else hours * price_per_hour
    counts = outcome.requests_per_replica
    return FleetReport(
        routing=outcome.options.routing,
        num_requests=len(served),
        num_prompt_tokens=num_prompt,
        num_output_tokens=num_output,
        simulated_s=outcome.end_s,
        hit_rate=sum(request.num_cached for request in served) / num_prompt,
        hit_bound=outcome.hit_bound,
        ttft_s=Percentiles.of([_ttft(request) for request in served]),
        tpot_s=Percentiles.of([_tpot(request) for request in served if request.num_output > 1]),
        latency_s=Percentiles.of([_end(request) - request.arrival_s for request in served]),
        goodput=good / len(served),
        good_requests_per_s=good / outcome.end_s,
        output_tokens_per_s=num_output / outcome.end_s,
        mean_replicas=outcome.replica_s / outcome.end_s,
        most_replicas=max(sample.num_replicas for sample in outcome.samples),
        replica_hours=hours,
        busy_share=outcome.busy_s / outcome.replica_s,
        imbalance=max(counts) * len(counts) / sum(counts),
        num_moves=sum(request.num_moves for request in served),
        num_preemptions=outcome.num_preemptions,
        num_steps=outcome.num_steps,
        cost_per_million_tokens=None if cost is None else cost / (num_prompt + num_output) * 1e6,
        cost_per_million_output_tokens=None if cost is None else cost / num_output * 1e6,
    )


def _end(request: Served) -> float:
    assert request.end_s is not None
    return request.end_s


def _ttft(request: Served) -> float:
    assert request.first_token_s is not None
    return request.first_token_s - request.arrival_s


def _tpot(request: Served) -> float:
    assert request.first_token_s is not None
    if request.num_output < 2:
        return 0.0
    return (_end(request) - request.first_token_s) / (request.num_output - 1)
