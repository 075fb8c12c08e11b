"""What constrained output costs: a batch with half of its requests constrained against none.

    python benchmarks/constrained.py [--requests 32] [--rounds 5]

Both kinds of batches write the same number of tokens (greedy, up to --tokens each), in turns; the
constraint is a list of objects that cannot end before. JSON last.
"""

import argparse
import json
import statistics
import time

from loire import LLM, SamplingParams
from loire.base.structured_outputs import StructuredOutputs

SCHEMA = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "city": {"enum": ["Tours", "Nantes", "Blois"]},
        },
        "required": ["name", "age", "city"],
        "additionalProperties": False,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    spec = StructuredOutputs(json=SCHEMA)
    with LLM(args.model, enable_prefix_caching=False) as llm:

        def run(constrained: int) -> float:
            """Output tokens per second."""
            params = [
                SamplingParams(
                    temperature=0.0,
                    max_tokens=args.tokens,
                    ignore_eos=True,
                    structured_outputs=spec if number < constrained else None,
                )
                for number in range(args.requests)
            ]
            started = time.perf_counter()
            outputs = llm.generate(["People of the town, as JSON:\n"] * args.requests, params)
            tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
            assert tokens == args.requests * args.tokens
            return tokens / (time.perf_counter() - started)

        run(args.requests)  # compiles the schema
        counts = {"none": 0, "half": args.requests // 2, "all": args.requests}
        speeds: dict[str, list[float]] = {name: [] for name in counts}
        for round_number in range(args.rounds):
            for name, count in counts.items():
                speeds[name].append(run(count))
            shown = ", ".join(f"{name} {values[-1]:.0f}" for name, values in speeds.items())
            print(f"round {round_number + 1}: output tokens/s {shown}", flush=True)
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, speeds["none"], strict=True))
        for name, values in speeds.items()
    }
    print(", ".join(f"{name} constrained: {ratio:.3f}" for name, ratio in ratios.items()))
    print(json.dumps({"ratios": ratios, "tokens_per_s": speeds}))


if __name__ == "__main__":
    main()
