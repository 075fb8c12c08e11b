"""vLLM, driven line by line over standard input, in its own virtual environment."""

import argparse
import os
import time

from protocol import Requests, answer_forever


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--label", required=True)
    parser.add_argument("--prefix", action="store_true")
    parser.add_argument("--kv-bytes", type=int, required=True)
    args = parser.parse_args()
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(args.kv_bytes // 2**30, 1))
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
    import vllm
    from vllm import LLM, SamplingParams

    llm = LLM(
        args.model,
        dtype="bfloat16",
        enable_prefix_caching=args.prefix,
        max_num_batched_tokens=2048,
        max_model_len=4096,
        disable_log_stats=False,
    )

    def run(requests: Requests) -> dict[str, float]:
        prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
        params = [
            SamplingParams(
                temperature=0.0, max_tokens=request["out"], ignore_eos=True, detokenize=True
            )
            for request in requests
        ]
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        wall_s = time.perf_counter() - started
        num_first = len(outputs[0].outputs[0].token_ids)
        metrics = outputs[0].metrics
        decode_s = metrics.last_token_ts - metrics.first_token_ts
        return {
            "wall_s": wall_s,
            "output_tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
            "ttft_s": metrics.first_token_latency,
            "tpot_s": decode_s / max(num_first - 1, 1),
        }

    answer_forever(run, f"vLLM {vllm.__version__}, {args.label}")


if __name__ == "__main__":
    main()
