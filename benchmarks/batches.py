"""What a batch of 200 requests costs those who wait for answers, and what it takes.

    python benchmarks/batches.py [--model smollm2] [--rounds 2]

A server of its own; two users who ask, read the stream, think for a second and ask again. Quiet
times without a batch and times with one take turns. JSON last.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

WORDS = ("river", "boat", "stone", "bridge", "water", "field", "tower", "house", "light", "wind")
NUM_LINES = 200
OUTPUT_TOKENS = 32
QUIET_S = 20
THINK_S = 1.0


@dataclass
class Times:
    """Seconds, one entry per answer."""

    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians and 95th percentiles in milliseconds."""
        result: dict[str, float] = {"answers": len(self.ttft)}
        for name, seconds in (("ttft", self.ttft), ("tpot", self.tpot)):
            cuts = statistics.quantiles(seconds, n=20, method="inclusive")
            result |= {f"{name}_p50_ms": 1000 * cuts[9], f"{name}_p95_ms": 1000 * cuts[18]}
        return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    quiet, busy, batch_s = Times(), Times(), []
    with serving(args.model) as url, httpx.Client(base_url=url, timeout=60) as client:
        talk(url, args.model, Times(), until=lambda: True)  # warms up
        for number in range(args.rounds):
            end = time.monotonic() + QUIET_S
            talk(url, args.model, quiet, until=lambda end=end: time.monotonic() > end)
            started = time.monotonic()
            batch_id = create_batch(client, args.model, seed=number)
            talk(url, args.model, busy, until=partial(has_ended, client, batch_id))
            batch_s.append(time.monotonic() - started)
            check(client, batch_id)
            print(f"round {number + 1}: the batch took {batch_s[-1]:.1f} s", flush=True)
    result = {
        "model": args.model,
        "lines": NUM_LINES,
        "without_batch": quiet.summary(),
        "with_batch": busy.summary(),
        "batch_s": batch_s,
    }
    for name in ("without_batch", "with_batch"):
        print(f"{name:<14}", {key: round(value, 1) for key, value in result[name].items()})
    print(json.dumps(result))


@contextmanager
def serving(model: str) -> Iterator[str]:
    """A server with a data folder of its own; its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "loire", "serve", model, "--port", "0"]
        command += ["--data-dir", folder]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"listening on (http://\S+),", line):
                    break
            else:
                raise SystemExit("the server did not start")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            while httpx.get(f"{found[1]}/health").status_code != 200:
                time.sleep(0.1)
            yield found[1]
        finally:
            process.terminate()
            process.wait()


def talk(url: str, model: str, times: Times, *, until: Any) -> None:
    """Two users ask until the time has come; at least once."""

    def user(seed: int) -> None:
        words = random.Random(seed)
        with httpx.Client(base_url=url, timeout=60) as client:
            while True:
                ask(client, model, text(words, 60), times)
                if over.wait(THINK_S * words.uniform(0.5, 1.5)):
                    return

    over = threading.Event()
    users = [threading.Thread(target=user, args=(random.getrandbits(32),)) for _ in range(2)]
    for thread in users:
        thread.start()
    while not until():
        time.sleep(0.5)
    over.set()
    for thread in users:
        thread.join()


def ask(client: httpx.Client, model: str, prompt: str, times: Times) -> None:
    body = request(model, prompt) | {"stream": True}
    started, arrivals = time.monotonic(), []
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"]:
                arrivals.append(time.monotonic())
    times.ttft.append(arrivals[0] - started)
    times.tpot.append((arrivals[-1] - arrivals[0]) / (OUTPUT_TOKENS - 1))


def request(model: str, prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}


def text(words: random.Random, count: int) -> str:
    return " ".join(words.choice(WORDS) for _ in range(count))


def create_batch(client: httpx.Client, model: str, seed: int) -> str:
    words = random.Random(seed)
    url = "/v1/chat/completions"
    lines = [
        {"custom_id": str(n), "method": "POST", "url": url, "body": request(model, text(words, 60))}
        for n in range(NUM_LINES)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    files = {"file": ("in.jsonl", content)}
    file = client.post("/v1/files", data={"purpose": "batch"}, files=files).json()
    body = {"input_file_id": file["id"], "endpoint": url, "completion_window": "24h"}
    return str(client.post("/v1/batches", json=body).json()["id"])


def has_ended(client: httpx.Client, batch_id: str) -> bool:
    batch = client.get(f"/v1/batches/{batch_id}").json()
    return batch["status"] in ("completed", "failed")


def check(client: httpx.Client, batch_id: str) -> None:
    """Every request was answered, once."""
    batch = client.get(f"/v1/batches/{batch_id}").json()
    lines = client.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
    ids = [json.loads(line)["custom_id"] for line in lines]
    assert ids == [str(n) for n in range(NUM_LINES)], batch


if __name__ == "__main__":
    main()
