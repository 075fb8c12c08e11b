"""A simulated fleet beside a real one: do hit rates agree?

    python benchmarks/fleet_simulation.py [MODEL] --replicas 2 --kv-cache-memory 200MB
    python benchmarks/fleet_simulation.py --replicas 4 --routing work random round-robin

Sessions of agents go to real engines on this machine, replicas of one front; what their steps took
is recorded, and costs are fitted to it. The same sessions are then simulated at those costs. Told
are the shares of prompt tokens that were found cached, and times to the first token, for each
routing, and whether the texts are the same under all. Ends with one line of JSON; exit status 1 if
the hit rates of a run and its simulation differ by more than two points, or texts by a token; of
random and round-robin choices only the texts count, as these depend on who happens to come first.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path
from typing import Any

from loire.base.config import EngineOptions
from loire.base.sampling import SamplingParams
from loire.base.step import StepRecord
from loire.base.units import parse_bytes
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
from loire.fleet.arrivals import OUTPUT_TOKEN, Agents, Arrival, agent_arrivals
from loire.fleet.client import FleetClient, frontend_of
from loire.fleet.door import DoorChannel, ReplicaDoor
from loire.fleet.messages import Joined
from loire.fleet.outcome import FleetOptions, Outcome
from loire.fleet.replica import EngineReplica
from loire.fleet.routing import ROUTINGS, make_routing
from loire.fleet.simulated_replica import ReplicaOptions
from loire.fleet.simulation import simulate
from loire.fleet.step_costs import StepCosts, fit, recorded_work

MOST_POINTS = 2.0
BY_CHANCE = ("random", "round-robin", "two-choices")
AGENTS = Agents(
    sessions=24,
    turns=6,
    system_prompts=3,
    system_tokens=512,
    first_tokens=60,
    tool_tokens=100,
    output_tokens=24,
    tool_s=1.0,
    sessions_per_s=2.0,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--kv-cache-memory", type=parse_bytes, default="200MB")
    parser.add_argument("--routing", choices=tuple(ROUTINGS), nargs="+", default=["work"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", type=Path, help="keep the fitted costs there")
    args = parser.parse_args()
    arrivals = agent_arrivals(AGENTS, seed=args.seed)
    told = {routing: compared(arrivals, routing, args) for routing in args.routing}
    same_texts = len({one.pop("texts") for one in told.values()}) == 1
    good = same_texts and all(
        one["points"] <= MOST_POINTS for routing, one in told.items() if routing not in BY_CHANCE
    )
    print(json.dumps({"good": good, "same_texts": same_texts, "routings": told}))
    return 0 if good else 1


def compared(arrivals: list[Arrival], routing: str, args: argparse.Namespace) -> dict[str, Any]:
    """The sessions on real engines and in a simulation at their costs."""
    real = asyncio.run(Real(args, routing).run(arrivals))
    costs = fit([step for records in real.records for step in recorded_work(records)])
    costs.costs.save(args.cost or Path(tempfile.mkstemp(suffix=".json")[1]))
    simulated = simulate_like(real, arrivals, routing, args, costs.costs)
    first_s = [served.first_token_s - served.arrival_s for served in simulated.served]
    points = 100 * abs(_share(simulated) - real.hit_rate)
    print(
        f"{routing:12} hits {real.hit_rate:.3f}, simulated {_share(simulated):.3f}, "
        f"one cache for all {simulated.hit_bound:.3f}",
        file=sys.stderr,
    )
    return {
        "points": points,
        "kv_tokens": real.num_blocks * real.block_size,
        "real": real.as_dict(),
        "simulated": {
            "hit_rate": _share(simulated),
            "ttft_s": _spread(first_s),
            "seconds": simulated.end_s,
        },
        "hit_bound": simulated.hit_bound,
        "costs_within": costs.typical_error,
        "texts": real.texts,
    }


def _spread(values: list[float]) -> list[float]:
    """The quartiles."""
    return statistics.quantiles(values, n=4)


class Real:
    """Engines on this machine, and what became of the sessions there."""

    def __init__(self, args: argparse.Namespace, routing: str) -> None:
        self._args = args
        self._routing = routing
        self.records: list[list[StepRecord]] = []
        self.block_size = self.num_blocks = self.max_num_seqs = self.max_num_batched_tokens = 0
        self._prompts: list[int] = []
        self._cached: list[int] = []
        self._first_s: list[float] = []
        self._wall_s = 0.0
        self._texts: dict[int, list[list[int]]] = {}

    @property
    def texts(self) -> str:
        """A digest of all answers."""
        return sha256(json.dumps(sorted(self._texts.items())).encode()).hexdigest()

    @property
    def hit_rate(self) -> float:
        return sum(self._cached) / sum(self._prompts)

    def as_dict(self) -> dict[str, Any]:
        return {
            "hit_rate": self.hit_rate,
            "ttft_s": _spread(self._first_s),
            "seconds": self._wall_s,
        }

    async def run(self, arrivals: list[Arrival]) -> "Real":
        path = resolve_model(self._args.model)
        checkpoint = open_checkpoint(path)
        options = EngineOptions(
            block_size=16,
            kv_cache_memory_bytes=self._args.kv_cache_memory,
            num_threads=1,
            max_num_batched_tokens=256,
            max_model_len=4096,
        )
        names = [f"replica-{number}" for number in range(self._args.replicas)]
        replicas = [await EngineReplica.create(name, str(path), options) for name in names]
        try:
            first = replicas[0].joined
            assert first is not None
            self._note(first)
            client = FleetClient(
                frontend_of(checkpoint, first, options),
                first,
                checkpoint.description,
                placement=make_routing(self._routing, self._args.seed),
            )
            for replica in replicas:
                records: list[StepRecord] = []
                self.records.append(records)
                replica.supervisor.step_listeners.append(records.append)
            doors = [ReplicaDoor(replica) for replica in replicas]
            follows = []
            for replica, door in zip(replicas, doors, strict=True):
                channel = DoorChannel(replica.name, await door.open("127.0.0.1"), client.link.name)
                follows.append(asyncio.create_task(client.link.follow(channel)))
            while len(client.link.replicas) < len(replicas):
                await asyncio.sleep(0.01)
            started_s = time.monotonic()
            await asyncio.gather(
                *(self._session(client, *numbered) for numbered in enumerate(arrivals))
            )
            self._wall_s = time.monotonic() - started_s
            for door in doors:
                await door.close()
            await asyncio.gather(*follows)
            await client.close()
        finally:
            for replica in replicas:
                await replica.close()
        return self

    def _note(self, joined: Joined) -> None:
        config = joined.config
        self.block_size, self.num_blocks = config.block_size, config.num_blocks
        self.max_num_seqs = config.max_num_seqs
        self.max_num_batched_tokens = config.max_num_batched_tokens

    async def _session(self, client: FleetClient, number: int, first: Arrival) -> None:
        answers: list[list[int]] = []
        for turn in first.turns():
            await asyncio.sleep(turn.wait_s)
            given = iter(answers)
            prompt: list[int] = []
            for token, count in turn.runs:
                prompt += next(given) if token == OUTPUT_TOKEN else [token] * count
            answers.append(await self._turn(client, prompt, turn.num_output))
        self._texts[number] = answers

    async def _turn(self, client: FleetClient, prompt: list[int], num_output: int) -> list[int]:
        params = SamplingParams(max_tokens=num_output, temperature=0.0, ignore_eos=True)
        submission = client.frontend.prompt(client.next_id(), prompt, params)
        asked_s, first_s = time.monotonic(), None
        token_ids: list[int] = []
        cached = 0
        async with aclosing(client.stream(submission)) as outputs:
            async for output in outputs:
                first_s = first_s or time.monotonic()
                cached = output.num_cached_tokens
                token_ids += output.outputs[0].token_ids
        assert len(token_ids) == num_output
        assert first_s is not None
        self._prompts.append(len(prompt))
        self._cached.append(cached)
        self._first_s.append(first_s - asked_s)
        return token_ids


def simulate_like(
    real: Real,
    arrivals: list[Arrival],
    routing: str,
    args: argparse.Namespace,
    costs: StepCosts,
) -> Outcome:
    replica = ReplicaOptions(
        kv_tokens=real.num_blocks * real.block_size,
        block_size=real.block_size,
        max_num_seqs=real.max_num_seqs,
        max_num_batched_tokens=real.max_num_batched_tokens,
    )
    options = FleetOptions(replicas=args.replicas, routing=routing, replica=replica, seed=args.seed)
    return simulate(arrivals, costs, options)


def _share(outcome: Outcome) -> float:
    cached = sum(served.num_cached for served in outcome.served)
    return cached / sum(served.num_prompt for served in outcome.served)


if __name__ == "__main__":
    sys.exit(main())
