"""What a flood of one tenant does to another: the light one's time to first token.

    python benchmarks/fairness.py [--model smollm2] [--rounds 3]

A server with two keys. The light tenant sends one short request after the other: alone; beside a
flood of the other tenant; and beside the same flood under the flood's own key, which is what first
come, first served would give it. The three take turns, several times. JSON last.
"""

import argparse
import asyncio
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import time

import httpx

FLOOD = 48
"""Requests of the flood that are in the server at any time."""
SLOTS = 16
NUM_LIGHT = 5
"""Requests of the light tenant per round."""
WORDS = (
    "river",
    "runs",
    "source",
    "through",
    "hills",
    "and",
    "towns",
    "to",
    "sea",
    "never",
    "back",
)


def prompt(number: int, num_words: int) -> str:
    """Words that no two requests begin with alike."""
    words = [WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(num_words)]
    return f"{number} " + " ".join(words)


class Load:
    """Requests to one server."""

    def __init__(self, url: str, model: str) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits())
        self.model = model
        self.number = 0
        self.num_flood_tokens = 0

    async def ttft_s(self, key: str, num_words: int, max_tokens: int) -> float:
        """Send one request and read its answer; seconds to the first token."""
        self.number += 1
        body = {
            "model": self.model,
            "prompt": prompt(self.number, num_words),
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"Authorization": f"Bearer {key}"}
        start, first = time.perf_counter(), None
        async with self.client.stream(
            "POST", "/v1/completions", json=body, headers=headers
        ) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and first is None:
                    first = time.perf_counter() - start
        assert first is not None
        return first

    async def light(self, key: str) -> list[float]:
        """The light tenant's requests, one after the other, with pauses."""
        times = []
        for _ in range(NUM_LIGHT):
            await asyncio.sleep(0.3)
            times.append(await self.ttft_s(key, 30, 16))
        return times

    async def beside_flood(self, key: str, flood_key: str) -> list[float]:
        """The same while FLOOD requests of another key are always there."""

        async def keep_asking() -> None:
            while True:
                await self.ttft_s(flood_key, 60, 32)

        tasks = [asyncio.create_task(keep_asking()) for _ in range(FLOOD)]
        try:
            await asyncio.sleep(3)
            return await self.light(key)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(1)


async def measure(url: str, model: str, light: str, flood: str, rounds: int) -> dict[str, object]:
    """The three cases by turns; seconds."""
    load = Load(url, model)
    times: dict[str, list[float]] = {"alone": [], "beside a flood": [], "in the flood's line": []}
    await load.light(light)
    for number in range(rounds):
        times["alone"] += await load.light(light)
        times["beside a flood"] += await load.beside_flood(light, flood)
        times["in the flood's line"] += await load.beside_flood(flood, flood)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    await load.client.aclose()
    return {
        name: {
            "median_s": statistics.median(values),
            "p90_s": statistics.quantiles(values, n=10)[-1],
            "max_s": max(values),
            "count": len(values),
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    light, flood = secrets.token_hex(16), secrets.token_hex(16)
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "loire", "serve", args.model, "--port", "0"),
            *("--max-num-seqs", str(SLOTS), "--kv-cache-memory", "500MB"),
            *("--max-model-len", "2k", "--served-model-name", "model"),
        ],
        env={**os.environ, "LOIRE_API_KEY": f"light:{light},flood:{flood}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        log = ""
        while "ready after" not in log:
            line = server.stderr.readline()
            assert line, log
            log += line
        found = re.search(r"listening on (http://\S+),", log)
        assert found is not None, log
        drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        results = asyncio.run(measure(found[1], "model", light, flood, args.rounds))
        drain.kill()
    finally:
        server.kill()
        server.wait()
    print(f"time to first token of the light tenant, {SLOTS} slots, a flood of {FLOOD} requests")
    print(f"{'':<22}{'median':>9}{'p90':>9}{'max':>9}")
    for name, row in results.items():
        assert isinstance(row, dict)
        figures = "".join(f"{row[key]:>8.3f}s" for key in ("median_s", "p90_s", "max_s"))
        print(f"{name:<22}{figures}")
    print(json.dumps({"model": args.model, "slots": SLOTS, "flood": FLOOD, "results": results}))


if __name__ == "__main__":
    main()
