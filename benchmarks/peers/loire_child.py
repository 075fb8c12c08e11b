"""Loire, driven line by line over standard input. See benchmarks/peers/compare.py."""

import argparse
import json
import time
from pathlib import Path

from protocol import answer_forever

from loire import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prefix", action="store_true")
    parser.add_argument("--kernels", default="auto")
    args = parser.parse_args()
    llm = LLM(
        args.model,
        dtype=args.dtype,
        enable_prefix_caching=args.prefix,
        kernels=args.kernels,
        kv_cache_memory_bytes=4 * 2**30,
    )

    def run(path: Path, variant: int) -> dict[str, float]:
        requests = json.loads(path.read_text())["variants"][variant]
        prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
        params = [
            SamplingParams(temperature=0.0, max_tokens=request["out"], ignore_eos=True)
            for request in requests
        ]
        started = time.perf_counter()
        outputs = llm.generate(prompts, params)
        wall_s = time.perf_counter() - started
        return {
            "wall_s": wall_s,
            "output_tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
            "ttft_s": outputs[0].timing.ttft_s or 0.0,
            "tpot_s": outputs[0].timing.tpot_s or 0.0,
        }

    answer_forever(run)


if __name__ == "__main__":
    main()
