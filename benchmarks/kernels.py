"""The native linear against the limits of the machine and against PyTorch's own.

    python benchmarks/kernels.py

For the shapes of SmolLM2-135M and of the 1B shape that make_model.py writes: bytes per second of
weights that come from memory (few tokens), and floating-point operations per second (many).
Native and torch take turns; each figure is a median. JSON last.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loire.kernels.cpu import CpuBackend
from loire.kernels.native.backend import NativeBackend

SHAPES = {"SmolLM2 gate_up": (576, 3072), "SmolLM2 down": (1536, 576), "1B down": (8192, 2048)}
TOKENS = (1, 4, 16, 64, 512)
COLD_BYTES = 200e6
"""Weights that take turns, so that none is still in a cache when its turn comes again."""


def main() -> None:
    native = NativeBackend()
    torch.set_num_threads(native.num_threads)
    memory = torch.ones(2**28)
    read = max(native.read_limit(memory) for _ in range(5))
    flops = max(native.multiply_limit(torch.bfloat16) for _ in range(5))
    print(f"{native.num_threads} threads, {native.instruction_set}")
    print(f"limits: reads {read / 1e9:.1f} GB/s, multiplies {flops / 1e9:.0f} GFLOP/s in bfloat16")
    print(
        f"{'shape':<18}{'tokens':>7}{'native GB/s':>13}{'GFLOP/s':>9}{'of limit':>9}{'x torch':>9}"
    )
    results = []
    for name, (inputs, outputs) in SHAPES.items():
        count = max(2, round(COLD_BYTES / (inputs * outputs * 2)))
        weights = [torch.randn(outputs, inputs).bfloat16() for _ in range(count)]
        layers = {
            "native": [native.linear.pack(weight) for weight in weights],
            "torch": [CpuBackend().linear.pack(weight) for weight in weights],
        }
        for tokens in TOKENS:
            x = torch.randn(tokens, inputs).bfloat16()
            seconds = {key: median_s(linears, x) for key, linears in layers.items()}
            bytes_per_s = inputs * outputs * 2 / seconds["native"]
            flops_per_s = 2 * tokens * inputs * outputs / seconds["native"]
            share = max(bytes_per_s / read, flops_per_s / flops)
            ratio = seconds["torch"] / seconds["native"]
            print(
                f"{name:<18}{tokens:>7}{bytes_per_s / 1e9:>13.1f}{flops_per_s / 1e9:>9.0f}"
                f"{share:>9.0%}{ratio:>9.2f}",
                flush=True,
            )
            results.append(
                {"shape": name, "tokens": tokens, "bytes_per_s": bytes_per_s}
                | {"flops_per_s": flops_per_s, "share_of_limit": share, "ratio_to_torch": ratio}
            )
    print(json.dumps({"read_limit": read, "multiply_limit": flops, "results": results}))


def median_s(linears: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> float:
    """Seconds of one multiplication, each weight read from memory."""
    seconds = []
    for _ in range(3):
        for linear in linears:
            started = time.perf_counter()
            linear(x)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
