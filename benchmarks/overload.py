"""Overload: ten times the sustainable rate. Is the rest refused at once, and nothing lost?

    python benchmarks/overload.py [MODEL] --seconds 60 --factor 10

First as many requests as the engine takes at a time are kept running, to find the sustainable rate.
Then requests arrive at FACTOR times that rate, at random (Poisson). Those that are refused must
hear so at once (99 of a hundred within 50 ms in the server), those that are let in must all
complete, with at least 80% of the undisturbed output, and the server's memory must stay flat. Ends
with one line of JSON; exit status 1 if something of that is not so.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from light_client import LightClient
from server_process import NAME, ServerProcess, processor_s

MOST_GROWTH_MB = 16


@dataclass
class Outcome:
    """What came of a run. Rates per second; tokens are output tokens."""

    sustainable_rate: float
    sustainable_tokens_s: float
    offered_rate: float = 0.0
    offered: int = 0
    completed: int = 0
    refused: int = 0
    failed: int = 0
    tokens_s: float = 0.0
    refusal_p50_ms: float = 0.0
    refusal_p99_ms: float = 0.0
    refusal_in_server_p99_ms: float = 0.0
    """At most: the bound of the histogram's bucket that it lies in."""
    share_of_maximum: float = 0.0
    """Output tokens per second against the sustainable ones."""
    processor_s: dict[str, float] = field(default_factory=dict)
    """What each process computed during the overload, this client included."""
    requests_left: int = 0
    blocks_left: int = 0
    server_rss_before_mb: float = 0.0
    server_rss_after_mb: float = 0.0

    @property
    def good(self) -> bool:
        whole = self.failed == self.requests_left == self.blocks_left == 0
        at_once = self.refused > 0 and self.refusal_in_server_p99_ms <= 50
        flat = self.server_rss_after_mb - self.server_rss_before_mb <= MOST_GROWTH_MB
        return whole and at_once and flat and self.share_of_maximum >= 0.8


def body(rng: random.Random, args: argparse.Namespace) -> dict[str, Any]:
    prompt = " ".join(str(rng.randrange(1000)) for _ in range(rng.randint(8, 32)))
    return {"model": NAME, "prompt": prompt, "max_tokens": args.max_tokens, "ignore_eos": True}


async def post(client: LightClient, body: dict[str, Any]) -> tuple[int, float]:
    """Status and seconds."""
    began = time.monotonic()
    status = await client.post("/v1/completions", body)
    return status, time.monotonic() - began


async def sustain(client: LightClient, rng: random.Random, args: argparse.Namespace) -> Outcome:
    """The rate at which requests end when enough of them are always there."""
    end = time.monotonic() + args.warmup
    ended: list[float] = []

    async def keep_asking() -> None:
        while time.monotonic() < end:
            status, _ = await post(client, body(rng, args))
            assert status == 200
            ended.append(time.monotonic())

    began = time.monotonic()
    await asyncio.gather(*(keep_asking() for _ in range(args.max_num_seqs)))
    rate = len(ended) / (ended[-1] - began)
    return Outcome(rate, rate * args.max_tokens)


async def overload(server: ServerProcess, args: argparse.Namespace) -> Outcome:
    rng = random.Random(args.seed)
    client = LightClient(server.url)
    outcome = await sustain(client, rng, args)
    outcome.server_rss_before_mb = server.rss_mb
    outcome.offered_rate = args.factor * outcome.sustainable_rate
    assert server.engine_pid is not None
    pids = {"client": os.getpid(), "server": server.process.pid, "engine": server.engine_pid}
    before = {name: processor_s(pid) for name, pid in pids.items()}
    requests = []
    began = due = time.monotonic()
    while due < began + args.seconds:
        await asyncio.sleep(max(0, due - time.monotonic()))
        requests.append(asyncio.create_task(post(client, body(rng, args))))
        due += rng.expovariate(outcome.offered_rate)
    answers = await asyncio.gather(*requests, return_exceptions=True)
    duration = time.monotonic() - began
    outcome.processor_s = {name: processor_s(pid) - before[name] for name, pid in pids.items()}
    await client.close()
    results = [answer for answer in answers if not isinstance(answer, BaseException)]
    outcome.offered = len(answers)
    outcome.completed = sum(status == 200 for status, _ in results)
    refusals = [seconds * 1000 for status, seconds in results if status == 429]
    outcome.refused = len(refusals)
    outcome.failed = outcome.offered - outcome.completed - outcome.refused
    outcome.tokens_s = outcome.completed * args.max_tokens / duration
    outcome.share_of_maximum = outcome.tokens_s / outcome.sustainable_tokens_s
    outcome.refusal_in_server_p99_ms = 1000 * refusal_quantile_s(server.url, 0.99)
    if len(refusals) > 1:
        outcome.refusal_p50_ms = statistics.median(refusals)
        outcome.refusal_p99_ms = statistics.quantiles(refusals, n=100)[-1]
    await asyncio.sleep(1)
    outcome.requests_left = httpx.get(f"{server.url}/health").json()["num_requests"]
    outcome.blocks_left = server.metric("loire_kv_blocks_in_use")
    outcome.server_rss_after_mb = server.rss_mb
    return outcome


def refusal_quantile_s(url: str, quantile: float) -> float:
    """Within how many seconds the server refused that share of the calls that found it full."""
    text = httpx.get(f"{url}/metrics").text
    name = "loire_rejection_duration_seconds_bucket"
    buckets = [
        (float(bound), float(count))
        for bound, count in re.findall(
            rf'^{name}{{le="([^"]+)",reason="queue_full"}} (\S+)$', text, re.MULTILINE
        )
    ]
    return min(bound for bound, count in buckets if count >= quantile * buckets[-1][1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--warmup", type=float, default=15.0, help="seconds to find the rate in")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    parser.add_argument("--max-queued-requests", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    flags = ("max_num_seqs", "max_queued_requests")
    server = ServerProcess(
        args.model,
        [
            *(f"--{flag.replace('_', '-')}={getattr(args, flag)}" for flag in flags),
            "--kv-cache-memory=1GB",
        ],
    )
    try:
        outcome = asyncio.run(overload(server, args))
    finally:
        server.stop()
    print(json.dumps({"good": outcome.good, **asdict(outcome)}))
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
