"""What fewer bits cost in quality: perplexity of a text in each format of weights, on one model.

    python benchmarks/perplexity.py [MODEL] [--text FILE] [--kernels native]
    python benchmarks/perplexity.py --each A.gguf B.gguf --text FILE

The first compares what options make of one model. The second takes files and compares, for each,
what is computed by default (bfloat16, weights in the file's bits, inputs rounded to eight) with the
same numbers expanded and computed in float32: what Loire's own rounding costs. JSON last.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from loire import LLM
from loire.workloads.perplexity import Perplexity, chunk_losses

CONTEXT = 512
FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"quantization": "none"},
    "KV int8": {"quantization": "none", "kv_cache_dtype": "int8"},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
}
EXACT = {"quantization": "none", "dtype": "float32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--each", nargs="*", help="files to compare with themselves in float32")
    parser.add_argument("--text", type=Path, nargs="*", help="files [this project's documents]")
    parser.add_argument("--chunks", type=int, help=f"only so many chunks of {CONTEXT} tokens")
    parser.add_argument("--kernels", default="auto")
    args = parser.parse_args()
    root = Path(__file__).parent.parent
    paths = args.text or [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    text = "\n\n".join(path.read_text() for path in paths)

    def measure(model: str, options: dict[str, Any]) -> tuple[Perplexity, int]:
        options = {"kernels": args.kernels, "max_model_len": CONTEXT + 1, **options}
        with LLM(model, **options) as llm:
            losses = chunk_losses(llm, text, context=CONTEXT, most_chunks=args.chunks)
            return Perplexity.of(losses), llm.engine.bytes_per_step

    results: dict[str, dict[str, float]] = {}
    if args.each:
        for model in args.each:
            exact, _ = measure(model, EXACT)
            kept, size = measure(model, {})
            results[model] = _shown(Path(model).name, kept, size, exact, "float32")
    else:
        first: Perplexity | None = None
        for name, options in FORMATS.items():
            found, size = measure(args.model, options)
            first = first or found
            results[name] = _shown(name, found, size, first, "bfloat16")
    print(json.dumps(results))


def _shown(name: str, found: Perplexity, size: int, other: Perplexity, of: str) -> dict[str, float]:
    added = found.nats_per_token - other.nats_per_token
    print(
        f"{name:<24} perplexity {found.perplexity:8.3f} ({math.exp(added):.4f} of {of}, "
        f"{added:+.5f} nats per token) over {found.tokens:,} tokens, "
        f"{size / 1e6:,.0f} MB of weights per step",
        flush=True,
    )
    return {**found.as_dict(), "added_nats": added, "bytes_per_step": size}


if __name__ == "__main__":
    main()
