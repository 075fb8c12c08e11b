"""llama.cpp's server, driven line by line over standard input, its requests all sent at once."""

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from protocol import Requests, answer_forever

START_LIMIT_S = 180.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--bin", type=Path, required=True, help="directory of llama-server")
    parser.add_argument("--label", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="requests at a time")
    parser.add_argument("--length", type=int, required=True, help="tokens of the longest request")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        args.bin / "llama-server", "--model", args.model, "--host", "127.0.0.1",
        "--port", port, "--threads", args.threads, "--threads-batch", args.threads,
        "--parallel", args.slots, "--ctx-size", args.slots * args.length,
        "--no-webui", "--cache-ram", 0,
    ]  # fmt: skip
    server = subprocess.Popen([str(part) for part in command], stdout=sys.stderr)
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, server)

    def one(request: dict[str, Any]) -> dict[str, dict[str, float]]:
        body = {
            "prompt": request["prompt"],
            "n_predict": request["out"],
            "ignore_eos": True,
            "temperature": 0.0,
            "top_k": 1,
            "cache_prompt": False,
            "stream": False,
        }
        call = urllib.request.Request(
            f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(call) as answer:
            parsed: dict[str, dict[str, float]] = json.load(answer)
            return parsed

    def run(requests: Requests) -> dict[str, float]:
        started = time.perf_counter()
        with ThreadPoolExecutor(len(requests)) as clients:
            answers = list(clients.map(one, requests))
        wall_s = time.perf_counter() - started
        timings = answers[0]["timings"]
        num_later = timings["predicted_n"] - 1
        return {
            "wall_s": wall_s,
            "output_tokens": sum(answer["timings"]["predicted_n"] for answer in answers),
            "ttft_s": timings["prompt_ms"] / 1000,
            "tpot_s": timings["predicted_ms"] / 1000 / num_later if num_later else 0.0,
        }

    try:
        answer_forever(run, f"llama.cpp {args.label}")
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while time.monotonic() - started < START_LIMIT_S:
        if server.poll() is not None:
            raise RuntimeError(f"llama-server ended with status {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"llama-server was not ready after {START_LIMIT_S:.0f} s")


if __name__ == "__main__":
    main()
