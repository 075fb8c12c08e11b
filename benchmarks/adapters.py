"""Many adapters in one batch, and adapters that come and go beside running streams.

    python benchmarks/adapters.py [MODEL] [--tokens N] [--rounds N] [--modules q_proj,v_proj]

Fifteen adapters of ranks 8 to 64 for all linear layers (or --modules) are written with random
weights. A batch of 32 requests, two for each adapter and two for the bare model, is run in turn
with the same batch for the bare model alone: the ratio of their tokens per second (median of the
rounds). Then sixteen streams of the bare model run alone, and beside requests for adapters that are
read from their files each time and unloaded afterwards: the gaps between tokens, which are those
between steps. JSON last.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from itertools import cycle, pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file

from loire import LLM, LoRARequest, SamplingParams
from loire.checkpoint.adapter_targets import AdapterTargets

RANKS = (8, 16, 32, 64)
ADAPTERS, BATCH, STREAMS = 15, 32, 16
PROMPT = 32
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(folder: Path, llm: LLM, number: int, modules: list[str]) -> LoRARequest:
    """In PEFT's format, for all layers of these names."""
    rank = RANKS[number % len(RANKS)]
    generator = torch.Generator().manual_seed(number)
    tensors = {}
    targets = AdapterTargets(llm.engine.checkpoint.description)
    for module, target in targets.by_name.items():
        if module.rpartition(".")[2] in modules:
            halves = {"A": (rank, target.inputs), "B": (target.outputs, rank)}
            for half, shape in halves.items():
                values = torch.randn(shape, generator=generator) * 0.01
                tensors[f"base_model.model.{module}.lora_{half}.weight"] = values.bfloat16()
    directory = folder / f"adapter-{number}"
    directory.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, directory / "adapter_model.safetensors")
    return LoRARequest(directory.name, number + 1, str(directory))


def prompts(count: int) -> list[list[int]]:
    """All of one length, no two with the same beginning."""
    return [[3 + (7 * i * i + 31 * n + i) % 250 for i in range(PROMPT)] for n in range(count)]


def tokens_per_s(llm: LLM, loras: list[LoRARequest | None], tokens: int) -> float:
    """Of one batch, from its first step that only decodes to its last."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    started = time.monotonic()
    llm.generate(prompts(len(loras)), params, lora_request=loras)
    steps = [record for record in llm.records if record.time_s >= started]
    full = [r for r in steps if all(slot.num_decode_tokens for slot in r.slots)]
    full = [record for record in full if len(record.slots) == len(loras)]
    return (len(full) - 1) * len(loras) / (full[-1].time_s - full[0].time_s)


def gaps_ms(llm: LLM, loras: list[LoRARequest], tokens: int) -> dict[str, float]:
    """Between steps while streams of the bare model run; beside them adapters come and go."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    running = threading.Thread(
        target=lambda: llm.generate(prompts(STREAMS), params), name="streams"
    )
    started, visits = time.monotonic(), 0
    running.start()
    for lora in cycle(loras) if loras else ():
        if not running.is_alive():
            break
        name = f"visit-{visits}"
        llm.load_adapter(name, lora.lora_path)
        short = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        llm.generate([[5, 6, 7, visits % 200]], short, lora_request=name)
        llm.unload_adapter(name)
        visits += 1
    running.join()
    times = [record.time_s for record in llm.records if record.time_s >= started]
    gaps = sorted(1e3 * (b - a) for a, b in pairwise(times))
    return {
        "p50": statistics.median(gaps),
        "p99": gaps[int(0.99 * (len(gaps) - 1))],
        "max": gaps[-1],
        "adapters": visits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--tokens", type=int, default=64, help="of each request [64]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modules", default=",".join(MODULES), help="that adapters are for [all]")
    parser.add_argument("--threads", type=int, help="of the kernels [all cores]")
    args = parser.parse_args()
    options = {"num_threads": args.threads, "enable_prefix_caching": False, "max_model_len": 2048}
    with tempfile.TemporaryDirectory() as folder, LLM(args.model, **options) as llm:
        adapters = [
            write_adapter(Path(folder), llm, number, args.modules.split(","))
            for number in range(ADAPTERS)
        ]
        mixed = [[*adapters, None][number % (ADAPTERS + 1)] for number in range(BATCH)]
        alone: list[LoRARequest | None] = [None] * BATCH
        for lora in mixed:
            llm.generate(prompts(1), SamplingParams(max_tokens=1), lora_request=lora)
        speeds = [
            (tokens_per_s(llm, alone, args.tokens), tokens_per_s(llm, mixed, args.tokens))
            for _ in range(args.rounds)
        ]
        base, many = (statistics.median(column) for column in zip(*speeds, strict=True))
        counts = llm.engine.adapters.counts
        print(f"bare model {base:.1f} tokens/s, {ADAPTERS} adapters and it {many:.1f}")
        print(f"{counts.num_resident} adapters in memory, {counts.num_bytes / 1e6:.1f} MB")
        quiet = gaps_ms(llm, [], args.tokens * 4)
        busy = gaps_ms(llm, adapters, args.tokens * 4)
    for name, gaps in (("alone", quiet), ("beside adapters that come and go", busy)):
        print(
            f"streams {name}: {gaps['p50']:.1f} ms between tokens, p99 {gaps['p99']:.1f}, "
            f"longest {gaps['max']:.1f} ({gaps['adapters']} adapters)"
        )
    result = {
        "model": args.model,
        "modules": args.modules,
        "base_tokens_per_s": base,
        "mixed_tokens_per_s": many,
        "ratio": many / base,
        "adapter_bytes": counts.num_bytes,
        "gaps_ms": {"alone": quiet, "with_adapters": busy},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
