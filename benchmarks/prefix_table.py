"""The prefix cache on a long table: two questions about one document.

    python benchmarks/prefix_table.py [MODEL]

A table of people is the prompt; the first question asks for the age of John Doe, the second for
that of Zack Blue. The second computes only what the cache does not hold. JSON last.
"""

import json
import random
import sys

from loire import LLM, SamplingParams

FIRST = ("John", "Mary", "Ada", "Alan", "Grace", "Edsger", "Barbara", "Donald", "Frances", "Ken")
LAST = ("Doe", "Smith", "Green", "White", "Black", "Brown", "Stone", "River", "Field", "Hill")


def table() -> str:
    """Markdown, about a hundred rows; Zack Blue is the last."""
    rng = random.Random(0)
    people = [(f"{first} {last}", rng.randint(18, 90)) for first in FIRST for last in LAST]
    people.append(("Zack Blue", 44))
    rows = [f"| {name} | {age} |" for name, age in people]
    return "\n".join(["| Name | Age |", "|---|---|", *rows])


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    document = table()
    params = SamplingParams(temperature=0.0, max_tokens=16)
    results = []
    with LLM(model, max_model_len=4096) as llm:
        llm.generate("Warm up.", params)
        for name in ("John Doe", "Zack Blue"):
            prompt = f"{document}\n\nQuestion: What is the age of {name}? Answer: {name} is"
            [output] = llm.generate(prompt, params)
            results.append(
                {
                    "question": name,
                    "answer": output.outputs[0].text.strip().splitlines()[0],
                    "prompt_tokens": len(output.prompt_token_ids),
                    "cached_tokens": output.num_cached_tokens,
                    "computed_tokens": len(output.prompt_token_ids) - output.num_cached_tokens,
                    "ttft_s": output.timing.ttft_s,
                }
            )
            shown = results[-1]
            print(
                f"{name:<10} {shown['computed_tokens']:5} of {shown['prompt_tokens']} prompt "
                f"tokens computed, first token after {shown['ttft_s']:.3f} s: {shown['answer']}"
            )
        block = llm.config.block_size
    ratio = results[0]["ttft_s"] / results[1]["ttft_s"]
    print(f"blocks of {block}; the second is {ratio:.1f} times faster to its first token")
    print(json.dumps({"block_size": block, "ttft_ratio": ratio, "results": results}))


if __name__ == "__main__":
    main()
