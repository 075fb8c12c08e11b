"""What this machine can do at most: bandwidth of its memory and throughput of its matrix units."""

import statistics
import time
from collections.abc import Callable

import torch

from loire.base.machine import usable_cores
from loire.execution.threads import torch_threads
from loire.planning.this_machine import Measurement

BUFFER_BYTES = 2**30
"""Larger than any cache."""


def measure_machine(repetitions: int = 7) -> Measurement:
    """Best of several runs: the machine may be shared, and the limit is what it can do."""
    with torch_threads(usable_cores()):
        return Measurement(
            bandwidth_bytes_per_s=_bandwidth(repetitions), flops=_matrix_throughput(repetitions)
        )


def _bandwidth(repetitions: int) -> float:
    """Bytes per second at which all threads read a buffer that no cache holds."""
    buffer = torch.ones(BUFFER_BYTES // 4)
    return BUFFER_BYTES / min(_times(lambda: buffer.sum(), repetitions))


def _matrix_throughput(repetitions: int) -> float:
    """Operations per second of a bfloat16 matrix product that caches serve well."""
    rows, inner, columns = 1024, 2048, 4096
    left = torch.randn(rows, inner).bfloat16()
    right = torch.randn(columns, inner).bfloat16()
    seconds = min(_times(lambda: torch.nn.functional.linear(left, right), repetitions))
    return 2 * rows * inner * columns / seconds


def _times(work: Callable[[], object], repetitions: int) -> list[float]:
    work()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def median(values: list[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(values) if values else 0.0
