"""OpenVINO GenAI, driven line by line over standard input, in its own virtual environment."""

import argparse
import time

import numpy as np
import openvino
import openvino_genai as genai
from protocol import Requests, answer_forever


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="directory that optimum-cli exported")
    parser.add_argument("--label", required=True)
    parser.add_argument("--prefix", action="store_true")
    parser.add_argument("--kv-bytes", type=int, required=True)
    args = parser.parse_args()
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = max(args.kv_bytes // 2**30, 1)
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = args.prefix
    pipeline = genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", {})
    served = 0

    def run(requests: Requests) -> dict[str, float]:
        nonlocal served
        started = time.perf_counter()
        handles = []
        for request in requests:
            config = genai.GenerationConfig()
            config.max_new_tokens = request["out"]
            config.ignore_eos = True
            config.do_sample = False
            prompt = openvino.Tensor(np.array([request["prompt"]], dtype=np.int64))
            handles.append(pipeline.add_request(served, prompt, config))
            served += 1
        # The first request's tokens are counted after each step, all others at their end.
        first: list[float] = []
        num_first = 0
        while pipeline.has_non_finished_requests():
            pipeline.step()
            if handles[0].can_read():
                num_first += sum(len(output.generated_ids) for output in handles[0].read().values())
                first.append(time.perf_counter())
        wall_s = time.perf_counter() - started
        others = [handle.read_all() for handle in handles[1:]]
        return {
            "wall_s": wall_s,
            "output_tokens": num_first + sum(len(output[0].generated_ids) for output in others),
            "ttft_s": first[0] - started,
            "tpot_s": (first[-1] - first[0]) / max(num_first - 1, 1),
        }

    version = genai.__version__.split("-")[0]
    answer_forever(run, f"OpenVINO GenAI {version}, {args.label}")


if __name__ == "__main__":
    main()
