"""llama.cpp's server, driven line by line over standard input, its requests all sent at once."""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llama_cpp_server import LlamaServer
from protocol import Requests, answer_forever


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--bin", type=Path, required=True, help="directory of llama-server")
    parser.add_argument("--label", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="requests at a time")
    parser.add_argument("--length", type=int, required=True, help="tokens of the longest request")
    args = parser.parse_args()
    server = LlamaServer(
        args.bin,
        args.model,
        threads=args.threads,
        slots=args.slots,
        length=args.length,
        options="--no-webui --cache-ram 0",
    )

    def one(request: dict[str, Any]) -> dict[str, Any]:
        body = {
            "prompt": request["prompt"],
            "n_predict": request["out"],
            "ignore_eos": True,
            "temperature": 0.0,
            "top_k": 1,
            "cache_prompt": False,
            "stream": False,
        }
        return server.complete(body)

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
        server.close()


if __name__ == "__main__":
    main()
