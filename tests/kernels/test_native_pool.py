"""The threads of the native kernels: forks, several callers, rest."""

import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from native_cases import backend, needs_library, same_bits

from loire.base.errors import ConfigError, EngineError
from loire.kernels.native.backend import NativeBackend, instruction_sets
from loire.kernels.native.library import NativeLibrary

pytestmark = needs_library


def work(kernels: NativeBackend) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(320, 256, generator=generator)
    return kernels.linear.pack(weight)(torch.randn(64, 256, generator=generator))


def test_several_threads_may_call_one_backend() -> None:
    kernels, expected = backend(2), work(backend(1))
    wrong: list[str] = []

    def call() -> None:
        for _ in range(50):
            if not same_bits(work(kernels), expected):
                wrong.append(threading.current_thread().name)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_backends_can_be_made_and_dropped_while_others_work() -> None:
    expected = work(backend(1))
    for _ in range(20):
        assert same_bits(work(NativeBackend(3)), expected)
        assert same_bits(work(backend(2)), expected)


def test_memory_made_ready_for_large_steps_changes_nothing() -> None:
    kernels, expected = NativeBackend(3), work(backend(1))
    kernels.reserve(4096, 8 << 20)  # no weights yet
    assert same_bits(work(kernels), expected)
    kernels.reserve(4096, 8 << 20)
    assert same_bits(work(kernels), expected)
    with pytest.raises(EngineError, match="out of memory"):
        kernels.reserve(2**48, 0)


def test_what_is_fetched_ahead_may_be_gone() -> None:
    """Workers fetch the weight that came next the last time, also if it has been freed since."""
    kernels, x = NativeBackend(3), torch.randn(2, 256)
    for _ in range(20):
        weights = [torch.randn(2048, 256) for _ in range(4)]
        linears = [kernels.linear.pack(weight) for weight in weights]
        expected = [linear(x) for linear in linears]
        for index in (0, 1, 2, 3, 2, 0):
            assert same_bits(linears[index](x), expected[index])
        del linears[1:3]
        for index, linear in zip((0, 3), linears, strict=True):
            assert same_bits(linear(x), expected[index])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_works_in_a_forked_child() -> None:
    # In a process of its own: forking the test process would warn about its other threads.
    program = """
import os, torch
from loire.kernels.native.backend import NativeBackend
weight, x = torch.randn(320, 256), torch.randn(64, 256)
kernels = NativeBackend(2)
linear = kernels.linear.pack(weight)
before = linear(x)
for _ in range(3):
    child = os.fork()
    if child == 0:
        again = kernels.linear.pack(weight)
        same = torch.equal(linear(x), before) and torch.equal(again(x), before)
        os._exit(7 if same else 1)
    assert os.waitpid(child, 0)[1] == 7 << 8
    assert torch.equal(linear(x), before)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


AFFINITY = """
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
int sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *set) {
    memset(set, 0, bytes);
    for (int cpu = 0; cpu < 4; ++cpu) CPU_SET(cpu, set);
    return 0;
}
int pthread_setaffinity_np(pthread_t thread, size_t bytes, const cpu_set_t *set) {
    puts("pinned");
    return 0;
}
"""
"""Four CPUs, whatever there are, and a word for each thread that is pinned to one of them."""


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs a C compiler on Linux"
)
@pytest.mark.parametrize("num_threads", [2, 4])
def test_pins_only_where_no_other_process_could_do_the_same(
    tmp_path: Path, num_threads: int
) -> None:
    """Processes with fewer threads than CPUs would all pin theirs to the first CPUs."""
    (tmp_path / "affinity.c").write_text(AFFINITY)
    library = tmp_path / "affinity.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "affinity.c")]
    subprocess.run(command, check=True, timeout=60)
    program = f"from loire.kernels.native.backend import *; NativeBackend({num_threads})"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stdout.split() == (["pinned"] * 3 if num_threads == 4 else [])


def test_rests_when_there_is_nothing_to_do() -> None:
    kernels = NativeBackend(3)
    work(kernels)
    time.sleep(0.02)  # they spin for some tens of microseconds
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.05
    work(kernels)


def test_leaves_the_callers_denormals_alone() -> None:
    work(backend(2))
    assert (torch.full((1,), 1e-39) * 1.0).item() > 0


def test_says_what_it_is() -> None:
    usable, why = NativeBackend.available()
    assert usable
    assert instruction_sets()[0] in why
    assert instruction_sets()[-1] == "portable"


def test_refuses_what_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"this processor has no avx1024; it has .*portable"):
        NativeBackend(1, "avx1024")
    with pytest.raises(ConfigError, match="num_threads must be between 1 and 1024, but is 0"):
        NativeBackend(0)


def test_a_missing_library_is_an_error_of_the_loader(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing here"):
        NativeLibrary(tmp_path / "nothing here.so")
