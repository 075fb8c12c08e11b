"""Conversations answered in turns, as agents have them: what of each prompt is computed.

    python benchmarks/conversations.py DIR
    python benchmarks/conversations.py FILE.gguf --llama-cpp BUILD/bin

Each conversation begins with --tokens random tokens; its prompt grows by the answer and --new more
tokens with every turn, and turns go round (first all first turns). For each turn the prompt tokens
computed, by the engine's own count, and the time to the answer's end. Of the same GGUF file
llama-server answers the same conversations, with a slot for each. JSON last.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from peers.llama_cpp_server import LlamaServer

from loire import LLM, SamplingParams
from loire.workloads.loads import plain_tokens

Answer = Callable[[int, list[int]], tuple[list[int], int]]
"""Of a conversation and its prompt: the tokens of the answer, how many of the prompt were found."""

VOCABULARY = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-cpp", type=Path, metavar="BINDIR")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8192, help="of the first prompt")
    parser.add_argument("--answer", type=int, default=100, help="tokens of each answer")
    parser.add_argument("--new", type=int, default=150, help="tokens that each turn brings")
    args = parser.parse_args()
    results = {"loire": _loire(args)}
    if args.llama_cpp:
        results["llama.cpp"] = _llama_cpp(args)
    print(json.dumps({"model": str(args.model), "turns": results}))


def _window(args: argparse.Namespace) -> int:
    return int(args.tokens + args.turns * (args.answer + args.new) + 1)


def _loire(args: argparse.Namespace) -> list[dict[str, float]]:
    params = SamplingParams(temperature=0.0, max_tokens=args.answer, ignore_eos=True)
    with LLM(str(args.model), max_model_len=_window(args), num_threads=args.threads) as llm:

        def answer(_: int, prompt: list[int]) -> tuple[list[int], int]:
            [output] = llm.generate([prompt], params)
            return list(output.outputs[0].token_ids), output.num_cached_tokens

        return _talk("Loire", args, answer)


def _llama_cpp(args: argparse.Namespace) -> list[dict[str, float]]:
    server = LlamaServer(
        args.llama_cpp,
        str(args.model),
        threads=args.threads,
        slots=args.conversations,
        length=_window(args),
        options="--no-webui",
    )

    def answer(conversation: int, prompt: list[int]) -> tuple[list[int], int]:
        body = {
            "prompt": prompt,
            "n_predict": args.answer,
            "ignore_eos": True,
            "temperature": 0.0,
            "top_k": 1,
            "cache_prompt": True,
            "id_slot": conversation,
            "return_tokens": True,
        }
        parsed = server.complete(body)
        return parsed["tokens"], len(prompt) - parsed["timings"]["prompt_n"]

    try:
        return _talk("llama.cpp", args, answer)
    finally:
        server.close()


def _talk(name: str, args: argparse.Namespace, answer: Answer) -> list[dict[str, float]]:
    """All turns of all conversations; sums over the conversations of each turn."""
    rng = random.Random(0)
    talks = [plain_tokens(rng, args.tokens, VOCABULARY) for _ in range(args.conversations)]
    results = []
    for turn in range(args.turns):
        computed = known = 0
        started = time.perf_counter()
        for index, talk in enumerate(talks):
            tokens, found = answer(index, talk)
            computed += len(talk) - found
            known += len(talk)
            talk += [*tokens, *plain_tokens(rng, args.new, VOCABULARY)]
        taken_s = time.perf_counter() - started
        results.append({"prompt_tokens": known, "computed": computed, "time_s": taken_s})
        print(
            f"{name}, turn {turn + 1}: {computed} of {known} prompt tokens computed, "
            f"{taken_s:.1f} s",
            flush=True,
        )
    return results


if __name__ == "__main__":
    main()
