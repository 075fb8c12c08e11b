"""A fleet in simulated time: arrivals, placement, replicas and their number, on one queue of
events. The same arguments give the same outcome.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from loire.base.errors import ConfigError
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.sampling import SamplingParams
from loire.fleet.arrivals import OUTPUT_TOKEN, Arrival
from loire.fleet.autoscaling import Decision, Demand, decide
from loire.fleet.one_big_cache import OneBigCache
from loire.fleet.outcome import FleetOptions, Outcome, Sample, Served
from loire.fleet.placement import Placement, PrefixChains, num_tokens_to_compute
from loire.fleet.routing import make_routing
from loire.fleet.simulated_replica import SimulatedReplica
from loire.fleet.simulated_time import SimulatedTime
from loire.fleet.step_costs import StepCosts
from loire.memory.prefix_names import split

SAMPLES = 240
"""Least number of points of the curves over time; there are fewer than twice as many."""


def simulate(
    arrivals: Sequence[Arrival],
    costs: StepCosts,
    options: FleetOptions,
    *,
    progress: Callable[[float], None] = lambda share: None,
    leaps: bool = True,
) -> Outcome:
    """Play arrivals to the end of the last request.

    progress: told the share of requests that have ended. leaps: False takes every step by itself,
    which gives the same outcome, later. Raises ConfigError for a request that no replica can hold.
    """
    check_sizes(arrivals, options)
    return _Simulation(arrivals, costs, options, progress, leaps).run()


def check_sizes(arrivals: Sequence[Arrival], options: FleetOptions) -> None:
    """Raise ConfigError for a fleet or for requests that cannot be."""
    if options.replicas < 1 or options.fronts < 1:
        raise ConfigError("a fleet has at least one replica and one front")
    most = options.replica.num_blocks * options.replica.block_size
    sizes = [t.num_prompt + t.num_output for first in arrivals for t in first.turns()]
    if not sizes:
        raise ConfigError("there are no requests to simulate")
    too_large = [size for size in sizes if size > most]
    if too_large:
        raise ConfigError(
            f"{len(too_large)} of {len(sizes)} requests are larger than a replica's KV pool of "
            f"{most:,} tokens; the largest has {max(too_large):,}: give --kv-tokens at least that"
        )


@dataclass(slots=True, eq=False)
class _Request:
    """An unfinished request."""

    turn: Arrival
    message: EngineRequest
    served: Served
    front: Placement


@dataclass(slots=True, eq=False)
class _Member:
    """A replica of the fleet. step: counts what was begun, so that the end of a leap which was cut
    short is known to be out of date."""

    engine: SimulatedReplica
    since_s: float
    step: int = 0
    num_placed: int = 0


class _Simulation:
    def __init__(
        self,
        arrivals: Sequence[Arrival],
        costs: StepCosts,
        options: FleetOptions,
        progress: Callable[[float], None],
        leaps: bool,
    ) -> None:
        self._costs, self._options = costs, options
        self._progress, self._leaps = progress, leaps
        self._time = SimulatedTime()
        self._rng = random.Random(options.seed)
        self._fronts = [
            make_routing(options.routing, options.seed + i) for i in range(options.fronts)
        ]
        self._names = count()
        self._members: dict[str, _Member] = {}
        self._gone: list[_Member] = []
        self._num_starting = 0
        self._replica_s = 0.0
        self._decision = Decision(options.replicas)
        self._requests: dict[str, _Request] = {}
        self._served: list[Served] = []
        self._samples: list[Sample] = []
        self._bound = OneBigCache(options.replica)
        self._num_all = self._num_left = sum(1 for a in arrivals for _ in a.turns())
        self._sample_every_s = max(max(a.wait_s for a in arrivals) / SAMPLES, 1e-3)
        for arrival in arrivals:
            self._time.at(arrival.wait_s, partial(self._arrive, arrival))

    def run(self) -> Outcome:
        """Until all requests have ended."""
        for _ in range(self._options.replicas):
            self._join(since_s=0.0)
        if self._options.autoscaling is not None:
            self._time.at(self._options.decide_every_s, self._decide)
        self._time.at(0.0, self._sample)
        while self._num_left:
            self._time.advance()
        for name in tuple(self._members):
            self._leave(name)
        engines = [member.engine for member in self._gone]
        return Outcome(
            options=self._options,
            served=self._served,
            samples=self._samples,
            end_s=self._time.now_s,
            replica_s=self._replica_s,
            busy_s=sum(engine.busy_s for engine in engines),
            num_steps=sum(engine.num_steps for engine in engines),
            num_preemptions=sum(engine.num_preemptions for engine in engines),
            hit_bound=self._bound.num_hit_tokens / sum(s.num_prompt for s in self._served),
            requests_per_replica=tuple(member.num_placed for member in self._gone),
        )

    # --- requests ---------------------------------------------------------------------------

    def _arrive(self, turn: Arrival) -> None:
        request_id = str(len(self._served))
        params = SamplingParams(max_tokens=turn.num_output, temperature=0.0, ignore_eos=True)
        message = EngineRequest(request_id, turn.token_ids(), params, seed=0)
        served = Served(self._time.now_s, len(message.prompt_token_ids), turn.num_output)
        self._served.append(served)
        request = _Request(turn, message, served, self._rng.choice(self._fronts))
        self._requests[request_id] = request
        chains = PrefixChains(message)
        self._bound.take(message, chains, turn.num_output)
        self._place(request, chains)

    def _place(self, request: _Request, chains: PrefixChains) -> None:
        message = request.message
        num_tokens = num_tokens_to_compute(message)
        name = request.front.place(message.request_id, chains, num_tokens)
        assert name is not None, "a fleet never is without a replica"
        member = self._members[name]
        member.num_placed += 1
        end_s = member.engine.add(message, self._time.now_s)
        if end_s is not None:
            self._end_step_at(end_s, member)
        elif member.engine.idle:
            self._begin_step(member)

    def _end(self, request: _Request) -> None:
        request.served.end_s = self._time.now_s
        request.front.end(request.message.request_id)
        del self._requests[request.message.request_id]
        self._num_left -= 1
        self._progress(1 - self._num_left / self._num_all)
        if (then := request.turn.then) is not None:
            self._time.after(then.wait_s, partial(self._arrive, then))

    # --- steps ------------------------------------------------------------------------------

    def _begin_step(self, member: _Member) -> None:
        end_s = member.engine.begin(self._time.now_s)
        if end_s is not None:
            self._end_step_at(end_s, member)

    def _end_step_at(self, end_s: float, member: _Member) -> None:
        member.step += 1
        self._time.at(end_s, partial(self._end_step, member, member.step))

    def _end_step(self, member: _Member, step: int) -> None:
        if step != member.step:
            return
        for update in member.engine.finish(self._time.now_s):
            self._take(update)
        if self._options.tells_blocks:
            found, gone = map(split, member.engine.take_names())
            for front in self._fronts:
                front.changed(member.engine.replica.name, found, gone)
        self._begin_step(member)

    def _take(self, update: SequenceUpdate) -> None:
        request = self._requests[update.request_id]
        served = request.served
        if served.first_token_s is None:
            served.first_token_s = self._time.now_s
            served.num_cached = update.num_cached_tokens
        request.front.first_token(update.request_id, update.num_cached_tokens)
        if update.finish_reason is not None:
            self._end(request)

    # --- replicas ---------------------------------------------------------------------------

    def _join(self, since_s: float) -> None:
        name = f"replica-{next(self._names)}"
        engine = SimulatedReplica(
            name,
            self._options.replica,
            self._costs,
            leaps=self._leaps,
            tells_names=self._options.tells_blocks,
        )
        self._members[name] = _Member(engine, since_s)
        for front in self._fronts:
            front.join(engine.replica)
        self._spread_waiting()

    def _spread_waiting(self) -> None:
        """Place those anew that nothing is computed of yet: a new replica has nothing to do."""
        for member in tuple(self._members.values()):
            for request_id in member.engine.waiting_ids:
                request = self._requests[request_id]
                member.engine.withdraw(request_id)
                request.front.end(request_id)
                self._place(request, PrefixChains(request.message))

    def _leave(self, name: str) -> None:
        """A replica goes at once; what it had moves to others, with what it gave."""
        member = self._members.pop(name)
        member.step += 1
        self._gone.append(member)
        self._replica_s += self._time.now_s - member.since_s
        gave = member.engine.abandon(self._time.now_s)
        for front in self._fronts:
            front.leave(name)
        for request_id, num_output in gave.items():
            request = self._requests[request_id]
            request.served.num_moves += 1
            if num_output:
                outputs = ((OUTPUT_TOKEN,) * num_output,)
                request.message = replace(request.message, output_token_ids=outputs)
            self._place(request, PrefixChains(request.message))

    def _demand(self) -> Demand:
        engines = [member.engine for member in self._members.values()]
        queued = sum(engine.num_waiting_tokens for engine in engines)
        return Demand(queued, sum(engine.occupancy for engine in engines) / len(engines))

    def _decide(self) -> None:
        assert self._options.autoscaling is not None
        now_s = self._time.now_s
        num_replicas = len(self._members) + self._num_starting
        self._decision = decide(
            self._options.autoscaling, self._demand(), num_replicas, self._decision, now_s
        )
        for _ in range(self._decision.num_replicas - num_replicas):
            self._num_starting += 1
            self._time.after(self._options.startup_s, partial(self._started, now_s))
        for _ in range(min(num_replicas - self._decision.num_replicas, len(self._members) - 1)):
            least = min(self._members, key=lambda name: self._members[name].engine.num_requests)
            self._leave(least)
        self._time.after(self._options.decide_every_s, self._decide)

    def _started(self, since_s: float) -> None:
        self._num_starting -= 1
        self._join(since_s)

    def _sample(self) -> None:
        engines = [member.engine for member in self._members.values()]
        queued = sum(engine.num_waiting_tokens for engine in engines)
        self._samples.append(Sample(self._time.now_s, len(engines), len(self._requests), queued))
        if len(self._samples) >= 2 * SAMPLES:
            del self._samples[1::2]
            self._sample_every_s *= 2
        self._time.after(self._sample_every_s, self._sample)
