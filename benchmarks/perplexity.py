"""What quantization costs in quality: perplexity of a text in each format, on one model.

    python benchmarks/perplexity.py [MODEL] [--text FILE] [--kernels native]

The text is cut into windows; each token but the first of a window counts. JSON last.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from loire import LLM, SamplingParams

WINDOW = 512
FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "KV int8": {"kv_cache_dtype": "int8"},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--text", type=Path, nargs="*", help="files [this project's documents]")
    parser.add_argument("--kernels", default="auto")
    args = parser.parse_args()
    root = Path(__file__).parent.parent
    paths = args.text or [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    text = "\n\n".join(path.read_text() for path in paths)
    results = {}
    for name, options in FORMATS.items():
        loss, tokens, size = measure(args.model, text, args.kernels, options)
        results[name] = {"perplexity": math.exp(loss), "bytes_per_step": size}
        ratio = math.exp(loss - math.log(results["bfloat16"]["perplexity"]))
        print(
            f"{name:<9} perplexity {math.exp(loss):7.3f} ({ratio:.4f} of bfloat16) over {tokens:,} "
            f"tokens, {size / 1e6:,.0f} MB of weights per step",
            flush=True,
        )
    print(json.dumps(results))


def measure(model: str, text: str, kernels: str, options: dict[str, Any]) -> tuple[float, int, int]:
    """Mean negative log-likelihood, tokens counted, and bytes of weights that a step reads."""
    with LLM(model, kernels=kernels, max_model_len=WINDOW + 1, **options) as llm:
        ids = llm.frontend.tokenizer.encode(text, add_special_tokens=False)
        windows = [ids[first : first + WINDOW] for first in range(0, len(ids) - WINDOW, WINDOW)]
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        outputs = llm.generate([{"prompt_token_ids": window} for window in windows], params)
        losses = []
        for window, output in zip(windows, outputs, strict=True):
            assert output.prompt_logprobs is not None
            for token_id, position in zip(window[1:], output.prompt_logprobs[1:], strict=True):
                assert position is not None
                losses.append(-position[token_id].logprob)
        return sum(losses) / len(losses), len(losses), llm.engine.bytes_per_step


if __name__ == "__main__":
    main()
