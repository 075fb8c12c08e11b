"""Chaos: many streams, an engine that is killed, clients that leave. Does everybody else get all?

    python benchmarks/chaos.py [MODEL] --streams 200 --kills 3 --leaving 0.2

First every prompt is answered undisturbed, by the same server. Then all are streamed at once while
`kill -9` hits the engine's process at random moments and a share of the clients disconnects, each
at a random piece of its answer. Every stream that stays must end with the very same text; at the
end no request and no KV block may be left. Ends with one line of JSON; exit status 1 if it failed.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from server_process import NAME, ServerProcess


@dataclass
class Outcome:
    """What came of a run."""

    streams: int
    kills: int
    left: int = 0
    completed: int = 0
    equal: int = 0
    failures: list[str] = field(default_factory=list)
    longest_pause_s: float = 0.0
    median_longest_pause_s: float = 0.0
    duration_s: float = 0.0
    undisturbed_s: float = 0.0
    engine_restarts: int = 0
    requests_left: int = 0
    blocks_left: int = 0
    server_rss_before_mb: float = 0.0
    server_rss_after_mb: float = 0.0
    server_files_before: int = 0
    server_files_after: int = 0

    @property
    def good(self) -> bool:
        return (
            not self.failures
            and self.equal == self.completed == self.streams - self.left
            and self.engine_restarts == self.kills
            and self.requests_left == self.blocks_left == 0
        )


async def stream(
    client: httpx.AsyncClient, body: dict[str, Any], leave_after: int | None = None
) -> tuple[str, float, int]:
    """The text of an answer, the longest pause in it, and how many pieces it came in."""
    text, pause, pieces, last = "", 0.0, 0, time.monotonic()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError((await response.aread()).decode())
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            now = time.monotonic()
            pause, last = max(pause, now - last), now
            pieces += 1
            text += event["choices"][0]["text"]
            if leave_after is not None and pieces >= leave_after:
                break
    return text, pause, pieces


async def chaos(server: ServerProcess, args: argparse.Namespace) -> Outcome:
    rng = random.Random(args.seed)
    outcome = Outcome(args.streams, args.kills)
    bodies = [
        {
            "model": NAME,
            "prompt": f"{'Once upon a time ' * rng.randint(1, 20)}there were {number}",
            "max_tokens": rng.randint(args.max_tokens // 2, args.max_tokens),
            "temperature": 0 if number % 2 else 0.8,
            "seed": number,
            "ignore_eos": True,
            "stream": True,
        }
        for number in range(args.streams)
    ]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=900, limits=limits) as client:
        began = time.monotonic()
        calm = await asyncio.gather(*(stream(client, body) for body in bodies))
        outcome.undisturbed_s = time.monotonic() - began
        outcome.server_rss_before_mb, outcome.server_files_before = server.rss_mb, server.num_files
        leaving = set(rng.sample(range(args.streams), int(args.leaving * args.streams)))
        outcome.left = len(leaving)
        began = time.monotonic()
        answers = asyncio.gather(
            *(
                stream(client, body, rng.randint(1, calm[number][2]) if number in leaving else None)
                for number, body in enumerate(bodies)
            ),
            return_exceptions=True,
        )
        for moment in sorted(rng.uniform(0.05, 0.9) for _ in range(args.kills)):
            await asyncio.sleep(max(0, began + moment * outcome.undisturbed_s - time.monotonic()))
            # A process that is being replaced cannot be killed: wait for the next one.
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.05)
            assert server.engine_pid is not None
            os.kill(server.engine_pid, signal.SIGKILL)
            while (await client.get("/health/ready")).status_code == 200:
                await asyncio.sleep(0.01)
        results = await answers
        outcome.duration_s = time.monotonic() - began
        pauses = []
        for number, result in enumerate(results):
            if isinstance(result, BaseException):
                outcome.failures.append(f"stream {number}: {type(result).__name__}: {result}")
            elif number not in leaving:
                outcome.completed += 1
                outcome.equal += result[0] == calm[number][0]
                pauses.append(result[1])
        outcome.longest_pause_s = max(pauses, default=0.0)
        outcome.median_longest_pause_s = statistics.median(pauses) if pauses else 0.0
    await asyncio.sleep(1)
    outcome.engine_restarts = server.metric("loire_engine_restarts_total")
    outcome.requests_left = httpx.get(f"{server.url}/health").json()["num_requests"]
    outcome.blocks_left = server.metric("loire_kv_blocks_in_use")
    outcome.server_rss_after_mb, outcome.server_files_after = server.rss_mb, server.num_files
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--leaving", type=float, default=0.2, help="share of clients that leave")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    server = ServerProcess(args.model, ["--dtype", args.dtype, "--kv-cache-memory", "2GB"])
    try:
        outcome = asyncio.run(chaos(server, args))
    finally:
        server.stop()
    print(*outcome.failures, sep="\n", file=sys.stderr)
    print(json.dumps({"good": outcome.good, **asdict(outcome)}))
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
