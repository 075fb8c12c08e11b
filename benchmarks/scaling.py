"""How time per token grows with the context, and throughput with the number of streams.

    python benchmarks/scaling.py [MODEL] [--quantization int4] [--kv-cache-dtype auto int8]

Three tables: one stream at growing contexts; growing numbers of streams at a short one; a prefill.
Beside each figure the share of what the machine allows: for decoding the bytes of weights and KV
over the speed at which its cores read, for the prefill the multiplications over the speed at which
they multiply. KV formats take turns. Memory per token is what the process grew by. JSON last.
"""

import argparse
import json
import random
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from loire import LLM, SamplingParams
from loire.kernels.native.backend import NativeBackend

CONTEXTS = (128, 1024, 4096)
STREAMS = (1, 2, 4, 8, 16, 32, 64)
STREAM_CONTEXT = 128
OUTPUT = 24
PREFILL = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--quantization", choices=("auto", "none", "int8", "int4"), default="auto")
    parser.add_argument("--kv-cache-dtype", nargs="+", default=["auto", "int8"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    limits = measure_limits()
    print(
        f"limits: reads {limits['read'] / 1e9:.1f} GB/s, multiplies "
        f"{limits['multiply'] / 1e9:.0f} GFLOP/s in bfloat16",
        flush=True,
    )
    results = {
        name: measure(args.model, args.quantization, name, args.rounds, limits)
        for name in args.kv_cache_dtype
    }
    print(json.dumps({"model": args.model, "limits": limits, "kv_cache_dtype": results}))


def measure_limits() -> dict[str, float]:
    """Bytes per second that all cores read, and operations per second in bfloat16."""
    native = NativeBackend()
    memory = torch.ones(2**28)
    return {
        "read": max(native.read_limit(memory) for _ in range(5)),
        "multiply": max(native.multiply_limit(torch.bfloat16) for _ in range(5)),
    }


def measure(
    model: str, quantization: str, kv_dtype: str, rounds: int, limits: dict[str, float]
) -> dict[str, Any]:
    """All tables for one KV format."""
    pool = 64 * (STREAM_CONTEXT + OUTPUT + 16) + max(CONTEXTS) + PREFILL
    with LLM(
        model,
        quantization=quantization,
        kv_cache_dtype=kv_dtype,
        max_model_len=max(CONTEXTS) + OUTPUT,
        max_num_seqs=max(STREAMS),
        enable_prefix_caching=False,
        kv_cache_memory_bytes=2 * pool * 70_000,
    ) as llm:
        kv_bytes = llm.engine.config.kv_bytes_per_token
        print(f"\n{kv_dtype}: {kv_bytes / 1000:.1f} kB of KV per token")
        before = resident_bytes()
        decode_step_s(llm, 1, max(CONTEXTS))
        grown = (resident_bytes() - before) / (max(CONTEXTS) + OUTPUT)
        print(f"the process grew by {grown / 1000:.1f} kB per token, scratch memory included")

        def row(streams: int, context: int) -> dict[str, float]:
            seconds = statistics.median(decode_step_s(llm, streams, context) for _ in range(rounds))
            read = llm.engine.step_bytes(streams) + streams * (context + OUTPUT / 2) * kv_bytes
            share = read / limits["read"] / seconds
            print(
                f"{streams:>7}{context:>9}{seconds * 1000:>12.1f}{streams / seconds:>12.1f}"
                f"{share:>12.0%}",
                flush=True,
            )
            return {"streams": streams, "context": context, "step_s": seconds, "share": share}

        print(f"{'streams':>7}{'context':>9}{'ms a step':>12}{'tokens/s':>12}{'of reading':>12}")
        contexts = [row(1, context) for context in CONTEXTS]
        streams = [row(streams, STREAM_CONTEXT) for streams in STREAMS]
        ratio = contexts[-1]["step_s"] / contexts[0]["step_s"]
        print(f"time per token at {CONTEXTS[-1]} / at {CONTEXTS[0]}: {ratio:.2f}")
        prefill_s = statistics.median(time_to_first_token(llm) for _ in range(rounds))
        print(f"prefill of {PREFILL}: {prefill_s:.2f} s, {PREFILL / prefill_s:.0f} tokens/s")
    return {
        "kv_bytes_per_token": kv_bytes,
        "resident_bytes_per_token": grown,
        "contexts": contexts,
        "streams": streams,
        "prefill_s": prefill_s,
    }


def decode_step_s(llm: LLM, streams: int, context: int) -> float:
    """Median seconds from step to step while all streams decode, nothing else."""
    llm.generate(prompts(llm, streams, context), params(OUTPUT))
    full = [r for r in llm.records if len(r.slots) == streams and all_decode(r)][-OUTPUT:]
    gaps = [b.time_s - a.time_s for a, b in pairwise(full) if b.step_id == a.step_id + 1]
    return statistics.median(gaps)


def time_to_first_token(llm: LLM) -> float:
    started = time.perf_counter()
    llm.generate(prompts(llm, 1, PREFILL), params(1))
    return time.perf_counter() - started


def all_decode(record: Any) -> bool:
    return all(slot.num_decode_tokens == 1 for slot in record.slots)


def params(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


def prompts(llm: LLM, count: int, length: int) -> list[dict[str, list[int]]]:
    """Random tokens; no two prompts begin alike."""
    size = llm.frontend.tokenizer.vocab_size
    rng = random.Random(count * length)
    return [
        {"prompt_token_ids": [rng.randrange(10, size) for _ in range(length)]} for _ in range(count)
    ]


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


if __name__ == "__main__":
    main()
