"""How fast a workload could be at best, from what the machine gives and the model asks for."""

from collections.abc import Sequence
from pathlib import Path

from loire.checkpoint.open import open_checkpoint
from loire.planning.model_size import size_of_checkpoint
from loire.planning.this_machine import Measurement
from loire.workloads.loads import Load


def limit_s(
    model: Path, weight_bytes: int, load: Load, prefix: bool, machine: Measurement
) -> float:
    """The simple limit of a load in seconds: weights read once per step, prompts multiplied.

    Decoding is as many steps as the longest request has outputs after its first; what they
    compute is not counted, nor is attention. With `prefix`, what all prompts begin with is
    computed once. The throughput is that of PyTorch's bfloat16 product: it can be surpassed.

    Args:
        model: Hugging Face directory.
        weight_bytes: what a step reads.
        load: its requests, all there from the start.
        prefix: whether prefixes are shared.
        machine: measured in the same run.
    """
    size = size_of_checkpoint(
        open_checkpoint(model),
        model.name,
        dtype="bfloat16",
        quantization="none",
        kv_dtype="bfloat16",
        on_cpu=True,
    )
    prompts = [request.prompt_token_ids for request in load.requests]
    tokens = sum(len(prompt) for prompt in prompts)
    if prefix:
        tokens -= (len(prompts) - 1) * _shared(prompts)
    # Only the last token of a prompt goes through the output head.
    body = size.step_parameters - size.head_parameters
    prefill_s = 2 * (body * tokens + size.head_parameters * len(prompts)) / machine.flops
    steps = max(request.num_output for request in load.requests) - 1
    return prefill_s + steps * weight_bytes / machine.bandwidth_bytes_per_s


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with."""
    count = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count
