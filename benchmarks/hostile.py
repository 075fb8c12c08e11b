"""What hostile clients do to honest ones: time to first token calm and under attack, memory, log.

    python benchmarks/hostile.py [--model smollm2] [--calm 60] [--seconds 600]

Four honest tenants send short conversations, one after the other, and read their streams: first
alone, then beside two hostile tenants and clients without keys, who mix slow heads and bodies,
bodies of megabytes, streams that are left, constraints that take seconds to compile, calls with
n = 128, and wrong keys (hostile_clients.py). JSON last.
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
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from server_process import NAME, ServerProcess

HONEST = ("ada", "bea", "cyd", "dot")
HOSTILE = ("mal", "ivy")
PAUSE_S = 0.5


@dataclass
class Honest:
    """What honest tenants met."""

    ttfts_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def talk(self, client: httpx.AsyncClient, key: str, end_s: float) -> None:
        """One conversation after the other, until then."""
        number = 0
        while time.monotonic() < end_s:
            number += 1
            try:
                self.ttfts_s.append(await self._ask(client, key, number))
            except (httpx.HTTPError, AssertionError) as error:
                self.failures.append(f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, client: httpx.AsyncClient, key: str, number: int) -> float:
        text = f"{number}. What is the capital of country {secrets.token_hex(4)}?"
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 12,
            "ignore_eos": True,
            "stream": True,
        }
        start, first, done = time.perf_counter(), None, False
        headers = {"Authorization": f"Bearer {key}"}
        url = "/v1/chat/completions"
        async with client.stream("POST", url, json=body, headers=headers) as answer:
            assert answer.status_code == 200, f"{answer.status_code} {await answer.aread()!r}"
            async for line in answer.aiter_lines():
                if '"content"' in line and first is None:
                    first = time.perf_counter() - start
                done = done or line == "data: [DONE]"
        assert first is not None, "no token came"
        assert done, "the stream broke"
        return first

    def summary(self) -> dict[str, object]:
        """Seconds."""
        quantiles = statistics.quantiles(self.ttfts_s, n=100, method="inclusive")
        return {
            "answers": len(self.ttfts_s),
            "failures": self.failures[:5],
            "num_failures": len(self.failures),
            "ttft_p50_s": round(statistics.median(self.ttfts_s), 4),
            "ttft_p99_s": round(quantiles[-1], 4),
            "ttft_max_s": round(max(self.ttfts_s), 4),
        }


async def phase(url: str, keys: dict[str, str], seconds: float) -> Honest:
    """The honest ones for so many seconds."""
    honest, end_s = Honest(), time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(honest.talk(client, keys[name], end_s) for name in HONEST))
    return honest


def take_what_is_idle() -> None:
    """Of the processor: elsewhere hostile clients would have machines of their own."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def engine_mb(server: ServerProcess) -> int:
    """What the engine's process holds."""
    engine = server.engine_pid
    status = Path(f"/proc/{engine}/status").read_text() if engine else ""
    [rss] = re.findall(r"VmRSS:\s+(\d+)", status) or ["0"]
    return int(rss) // 1024


async def watch(server: ServerProcess, seconds: float) -> list[dict[str, float]]:
    """Memory and log every ten seconds."""
    seen, began = [], time.monotonic()
    while time.monotonic() < began + seconds:
        await asyncio.sleep(10)
        seen.append(
            {
                "at_s": round(time.monotonic() - began),
                "server_mb": round(server.rss_mb),
                "engine_mb": engine_mb(server),
                "files": server.num_files,
                "log_bytes": os.path.getsize(server.log.name),
            }
        )
    return seen


async def measure(server: ServerProcess, keys: dict[str, str], calm: float, seconds: float) -> dict:
    """Calm, then under attack."""
    await phase(server.url, keys, 5)
    quiet = (await phase(server.url, keys, calm)).summary()
    before_mb = {"server": round(server.rss_mb), "engine": engine_mb(server)}
    attack = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hostile_clients.py")), server.url,
         str(seconds), *(keys[name] for name in HOSTILE)],
        stdout=subprocess.PIPE,
        preexec_fn=take_what_is_idle,
    )  # fmt: skip
    try:
        attacked, seen = await asyncio.gather(
            phase(server.url, keys, seconds), watch(server, seconds)
        )
    finally:
        attack.terminate()
        told = attack.communicate(timeout=60)[0].decode()
    await asyncio.sleep(5)
    beside = attacked.summary()
    ratios = {
        name: round(float(str(beside[name])) / float(str(quiet[name])), 2)
        for name in ("ttft_p50_s", "ttft_p99_s")
    }
    return {
        "calm": quiet,
        "under_attack": beside,
        "ratio": ratios,
        "attacks": json.loads(told or "{}"),
        "mb_before": before_mb,
        "mb_after": {"server": round(server.rss_mb), "engine": engine_mb(server)},
        "seen": seen,
        "log_bytes": os.path.getsize(server.log.name),
        "alive": server.process.poll() is None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--calm", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=600.0)
    args = parser.parse_args()
    keys = {name: secrets.token_hex(16) for name in (*HONEST, *HOSTILE)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys"
        file.touch(mode=0o600)
        file.write_text("".join(f"{name}:{key}\n" for name, key in keys.items()))
        flags = ["--api-key-file", str(file), "--data-dir", f"{folder}/data"]
        flags += ["--max-num-seqs", "16", "--kv-cache-memory", "500MB"]
        server = ServerProcess(args.model, flags)
        try:
            found = asyncio.run(measure(server, keys, args.calm, args.seconds))
        finally:
            server.stop()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
