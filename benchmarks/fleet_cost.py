"""What replicas on Ray cost beside the engine: processor time per streamed token.

    python benchmarks/fleet_cost.py [MODEL] --streams 8 --tokens 200 --rounds 3

The same streams go through `loire serve` alone and through `loire serve --replicas ray:1`, in
turns. Counted is what the server's process took (/proc/PID/stat: user and system), and with
replicas also Ray's process around the engine; the engine itself and the rest of Ray are told
beside. Needs loire[ray]. Ends with one line of JSON; exit status 1 if a token through a replica
costs three times as much as without one, or more.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator

import httpx
import psutil
from server_process import NAME, ServerProcess, processor_s

MOST_RATIO = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    flags = ["--kv-cache-memory=200MB", "--num-threads=1"]
    servers = {}
    try:
        servers["alone"] = ServerProcess(args.model, flags)
        servers["replica"] = ServerProcess(args.model, [*flags, "--replicas=ray:1"])
        took: dict[str, list[dict[str, float]]] = {kind: [] for kind in servers}
        for number in range(args.rounds + 1):
            for kind, server in servers.items():
                part = measure(server, args.streams, args.tokens)
                if number:  # the first warms up
                    took[kind].append(part)
                    print(kind, {name: round(value, 3) for name, value in part.items()})
    finally:
        for server in servers.values():
            server.stop()
    median = {
        kind: {name: statistics.median(part[name] for part in parts) for name in parts[0]}
        for kind, parts in took.items()
    }
    ratio = (median["replica"]["front"] + median["replica"]["actor"]) / median["alone"]["front"]
    good = ratio < MOST_RATIO
    print(json.dumps({"good": good, "ratio": ratio, "ms_per_token": median, "runs": took}))
    return 0 if good else 1


def measure(server: ServerProcess, num_streams: int, num_tokens: int) -> dict[str, float]:
    """Milliseconds of processor time per token, by what computed, and tokens per second."""
    kinds = dict(processes(server))
    before = {pid: processor_s(pid) for pid in kinds}
    started_s = time.monotonic()
    total = asyncio.run(stream(server.url, num_streams, num_tokens))
    wall_s = time.monotonic() - started_s
    spent = dict.fromkeys(("front", "actor", "engine", "ray"), 0.0)
    for pid, kind in kinds.items():
        spent[kind] += (processor_s(pid) - before[pid]) * 1e3 / total
    return {**spent, "tokens_per_s": total / wall_s}


def processes(server: ServerProcess) -> Iterator[tuple[int, str]]:
    """The server's process and its children, each with what it is."""
    yield server.process.pid, "front"
    for child in psutil.Process(server.process.pid).children(recursive=True):
        command = " ".join(child.cmdline())
        if "template_process" in command or "form_process" in command:
            yield child.pid, "front"
        elif "loire.engine.worker" in command:
            yield child.pid, "engine"
        else:
            yield child.pid, "actor" if "ServeReplica:loire" in command else "ray"


async def stream(url: str, num_streams: int, num_tokens: int) -> int:
    """Read that many streams at once; their tokens."""

    async def one(client: httpx.AsyncClient, number: int) -> int:
        body = {
            "model": NAME,
            "prompt": f"Once upon a time {number}",
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            return sum([line.startswith("data: {") async for line in answer.aiter_lines()])

    async with httpx.AsyncClient(timeout=None) as client:
        counts = await asyncio.gather(*(one(client, number) for number in range(num_streams)))
    if min(counts) < num_tokens // 2:
        raise SystemExit(f"streams ended early: {counts} chunks")
    return num_streams * num_tokens


if __name__ == "__main__":
    sys.exit(main())
