"""Loire, driven line by line over standard input. See benchmarks/peers.py."""

import argparse
import time

from protocol import Requests, answer_forever

import loire
from loire import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--format", choices=["bf16", "int8", "int4"], required=True)
    parser.add_argument("--prefix", action="store_true")
    parser.add_argument("--kv-bytes", type=int, required=True)
    args = parser.parse_args()
    llm = LLM(
        args.model,
        dtype="bfloat16",
        quantization="none" if args.format == "bf16" else args.format,
        enable_prefix_caching=args.prefix,
        kv_cache_memory_bytes=args.kv_bytes,
    )

    def run(requests: Requests) -> dict[str, float]:
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

    name = f"Loire {loire.__version__}, {args.format}"
    answer_forever(run, name, weight_bytes=llm.engine.bytes_per_step)


if __name__ == "__main__":
    main()
