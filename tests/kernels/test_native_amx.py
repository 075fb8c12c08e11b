"""The linear with AMX on machines without it: its tiles emulated, everything else as it is.

The library is compiled from its sources with emulated_tiles.h in the place of tiles.h; it is called
like the real one, and tests itself before use like the real one. The real instructions are run by
scripts/amx_emulated.sh, on a whole emulated machine.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_cases import backend, needs_library, same_bits

from loire.base.config import Quantization
from loire.base.machine import usable_cores
from loire.checkpoint.feed_forward import Activation, Routing
from loire.kernels import cpu
from loire.kernels.interface import Linear
from loire.kernels.native import backend as native
from loire.kernels.native.backend import NativeBackend
from loire.kernels.native.library import NativeLibrary
from loire.kernels.select import select_backend
from support.blocks import stored

SOURCE = Path(native.__file__).parent / "source"
PARTS = sorted((SOURCE / "instruction_set").glob("*.cpp"))
TILES = Path(__file__).parent / "emulated_tiles.h"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-w")
EMULATED = (f'-DLOIRE_EMULATE_AMX="{TILES}"', "-DLOIRE_HAS_AMX")
WRONG_ORDER, CRASH, NO_END, WRONG_NUMBERS = 1, 2, 3, 4
CPU = torch.device("cpu")

pytestmark = [
    needs_library,
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
]


def compile_(*arguments: str | Path) -> None:
    assert COMPILER is not None
    run = subprocess.run(
        [COMPILER, *FLAGS, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr


def hardly_run(part: Path) -> tuple[str, ...]:
    """Flags of parts that have no tiles: compiling them takes longer than what they compute here.
    The order of additions, and with it the bits, are those of the source in either case."""
    return () if part.stem in ("dense", "quantized") else ("-O0",)


@pytest.fixture(scope="module")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("amx")
    jobs = []
    for name, flags in (("portable", ()), ("amx", ("-DLOIRE_AMX", *EMULATED))):
        names = f"-DLOIRE_TABLE={name}", f'-DLOIRE_NAME="{name}"'
        jobs += [
            (*flags, *names, *hardly_run(part), "-c", part, "-o", folder / f"{name}_{part.stem}.o")
            for part in PARTS
        ]
    jobs += [
        (*EMULATED, "-c", path, "-o", folder / f"{path.parent.name}_{path.stem}.o")
        for path in sorted(SOURCE.glob("*/*.cpp"))
        if path not in PARTS
    ]
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(lambda job: compile_(*job), jobs))
    compile_("-shared", *(job[-1] for job in jobs), "-o", folder / "emulated.so")
    return folder / "emulated.so"


@pytest.fixture(scope="module")
def emulated(library_path: Path) -> Callable[[int], NativeBackend]:
    """Backends with so many threads."""
    library = NativeLibrary(library_path)
    backends = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "load_library", lambda: library)
        for threads in (1, 2, 3):
            backends[threads] = NativeBackend(threads)
            assert backends[threads].instruction_set == "amx"
    return backends.__getitem__


@dataclass(frozen=True)
class Expert:
    gate_up: Linear
    down: Linear


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def in_the_order_of_amx(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Per 32 inputs a chain over the even and one over the odd ones, then their sum is added."""
    pad = (0, -x.shape[1] % 32)
    x, weight = (torch.nn.functional.pad(t.float(), pad) for t in (x, weight))
    total = torch.zeros(x.shape[0], weight.shape[0])
    for step in range(0, x.shape[1], 32):
        even = odd = torch.zeros_like(total)
        for k in range(step, step + 32, 2):
            even = even + x[:, k, None] * weight[None, :, k]
            odd = odd + x[:, k + 1, None] * weight[None, :, k + 1]
        total = total + (even + odd)
    return total


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 100),
    inputs=st.integers(1, 700),
    outputs=st.integers(1, 200),
    with_bias=st.booleans(),
    wide=st.booleans(),
)
@example(tokens=1, inputs=9000, outputs=64, with_bias=False, wide=True)  # more than one chunk
@example(tokens=15, inputs=1100, outputs=32, with_bias=True, wide=False)
@example(tokens=20, inputs=600, outputs=1100, with_bias=True, wide=True)  # panels share a chunk
@example(tokens=70, inputs=600, outputs=1100, with_bias=False, wide=False)
@example(tokens=230, inputs=300, outputs=40, with_bias=True, wide=True)  # several pieces of tokens
def test_adds_in_the_order_of_amx(
    emulated: Callable[[int], NativeBackend],
    tokens: int,
    inputs: int,
    outputs: int,
    with_bias: bool,
    wide: bool,
) -> None:
    weight, x = random(outputs, inputs), random(tokens, inputs, seed=1)
    bias = random(outputs, seed=2) if with_bias else None
    found = emulated(2).linear.pack(weight, bias)(x, wide=wide)
    exact = in_the_order_of_amx(x, weight)
    if bias is not None:
        exact = exact + bias.float()
    assert same_bits(found, exact if wide else exact.bfloat16())


def test_a_row_has_the_same_bits_in_any_batch(emulated: Callable[[int], NativeBackend]) -> None:
    weight, x = random(160, 576), random(210, 576, seed=1)
    whole = emulated(2).linear.pack(weight)(x)
    linear = emulated(2).linear.pack(weight)
    for tokens in (*range(1, 36), 63, 64, 65, 96, 97, 200):
        assert same_bits(linear(x[:tokens]), whole[:tokens])
    for threads in (1, 3):
        assert same_bits(emulated(threads).linear.pack(weight)(x), whole)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 100),
    inputs=st.integers(1, 700),
    outputs=st.integers(1, 100),
    quantization=st.sampled_from(("int8", "int4")),
    dtype=st.sampled_from((torch.bfloat16, torch.float32)),
    gate=st.sampled_from((None, "silu")),
)
@example(230, 300, 70, "int8", torch.bfloat16, None)  # several pieces of tokens
@example(33, 1100, 600, "int4", torch.bfloat16, "silu")  # one token left over, several chunks
def test_quantized_has_the_bits_of_the_other_sets(
    emulated: Callable[[int], NativeBackend],
    tokens: int,
    inputs: int,
    outputs: int,
    quantization: Quantization,
    dtype: torch.dtype,
    gate: Activation | None,
) -> None:
    """Of the portable ones: like them, these were compiled without fused arithmetic."""
    weight, bias = random(2 * outputs, inputs).to(dtype), random(2 * outputs, seed=2).to(dtype)
    x = random(tokens, inputs, seed=1).to(dtype)
    found, expected = (
        kernels.linear.pack(weight, bias, quantization=quantization, gate=gate)(x)
        for kernels in (emulated(2), backend(2, "portable"))
    )
    assert same_bits(found, expected)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_experts_have_the_bits_of_their_products(
    emulated: Callable[[int], NativeBackend], quantization: Quantization | None
) -> None:
    """Each token goes to one expert, so that nothing is added or weighted."""
    kernels = emulated(2).linear
    experts = [
        Expert(
            kernels.pack(random(2 * 96, 160, seed=i), quantization=quantization, gate="silu"),
            kernels.pack(random(160, 96, seed=9 + i), quantization=quantization),
        )
        for i in range(4)
    ]
    together = kernels.experts(experts, Routing(num_experts=4, top_k=1))
    x, logits = random(75, 160, seed=20), random(75, 4, seed=21).float()
    found, chosen = together(x, logits), logits.argmax(dim=1)
    for index, expert in enumerate(experts):
        rows = chosen == index
        assert rows.sum() > 4
        assert same_bits(found[rows], expert.down(expert.gate_up(x[rows])))


@pytest.mark.parametrize("fmt", ["Q4_1", "Q6_K", "Q8_0", "IQ4_XS", "Q2_K", "P2"])
def test_stored_blocks_have_the_bits_of_the_other_sets(
    emulated: Callable[[int], NativeBackend], fmt: str
) -> None:
    """With minimums, in two groups, codes that lie in place, those of a table, and inputs in two
    places."""
    weight, x = stored(fmt, (70, 768)), random(100, 768)
    linears = [
        kernels.linear.pack(weight, dtype=x.dtype)
        for kernels in (emulated(2), backend(2, "portable"))
    ]
    for tokens in (1, 4, 7, 16, 29, 100):
        found, expected = (linear(x[:tokens]) for linear in linears)
        assert same_bits(found, expected)


def test_denormals_count_as_zero(emulated: Callable[[int], NativeBackend]) -> None:
    tiny = torch.tensor([[1e-39, 0.0]]).bfloat16()
    huge = torch.full((1, 2), 1e30).bfloat16()
    assert emulated(1).linear.pack(huge)(tiny).item() == 0.0
    small = torch.full((1, 2), 1e-20).bfloat16()  # products below the smallest normal number
    assert emulated(1).linear.pack(small)(small, wide=True).item() == 0.0


def test_infinities_and_nan_stay_in_their_row(emulated: Callable[[int], NativeBackend]) -> None:
    weight, x = random(40, 64), random(20, 64, seed=1)
    linear = emulated(1).linear.pack(weight)
    clean = linear(x)
    x[1, 3], x[18, 60] = float("nan"), float("inf")
    found = linear(x)
    assert found[1].isnan().all()
    assert (~found[18].isfinite()).all()
    others = [row for row in range(20) if row not in (1, 18)]
    assert same_bits(found[others], clean[others])


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (WRONG_ORDER, "some bits of the result are wrong"),
        (WRONG_NUMBERS, "some bits of the result are wrong"),
        (CRASH, r"it ended with signal \d+ \("),
        (NO_END, "no result within 1000 ms"),
    ],
)
def test_a_processor_that_computes_otherwise_is_found_out(
    library_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int, why: str
) -> None:
    """And bfloat16 is left to oneDNN then, which may do better with it."""
    path = library_path.with_name(f"fault{fault}.so")
    shutil.copy(library_path, path)  # loaded anew, with variables of its own
    ctypes.c_int.in_dll(ctypes.CDLL(str(path)), "loire_emulated_fault").value = fault
    library = NativeLibrary(path)
    monkeypatch.setattr(native, "load_library", lambda: library)
    assert native.instruction_sets() == ("portable",)
    usable, note = NativeBackend.available()
    assert usable
    assert re.search(f"AMX is not used: the self-test of the kernels failed: {why}", note)
    assert NativeBackend.lacks_amx()
    monkeypatch.setattr(cpu, "can_pack", lambda: True)
    assert select_backend("auto", CPU, torch.bfloat16).name == "cpu"
    assert select_backend("auto", CPU, torch.float32, num_threads=1).name == "native"
    monkeypatch.setattr(cpu, "can_pack", lambda: False)
    assert select_backend("auto", CPU, torch.bfloat16, num_threads=1).name == "native"


def test_auto_stays_native_where_amx_works_or_is_absent(
    library_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert select_backend("auto", CPU, torch.bfloat16, num_threads=1).name == "native"
    library = NativeLibrary(library_path)
    monkeypatch.setattr(native, "load_library", lambda: library)
    chosen = select_backend("auto", CPU, torch.bfloat16, num_threads=1)
    assert isinstance(chosen, NativeBackend)
    assert chosen.instruction_set == "amx"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 alone has AMX")
def test_the_real_tiles_compile(tmp_path: Path) -> None:
    """As setup.py compiles them; scripts/amx_emulated.sh runs them."""
    probe = tmp_path / "probe.cpp"
    probe.write_text('void f() { asm volatile("tilerelease"); }')
    flags = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mavx512bf16 -mavx512vnni"
    flags += " -mamx-tile -mamx-bf16 -mamx-int8"
    assert COMPILER is not None
    command = [COMPILER, *flags.split(), "-c", str(probe), "-o", str(tmp_path / "probe.o")]
    if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0:
        pytest.skip("the compiler does not know AMX")
    names = ("-DLOIRE_TABLE=amx", '-DLOIRE_NAME="amx"', "-DLOIRE_AMX")
    sets = ("-DLOIRE_AVX512", "-DLOIRE_AVX512_BF16")
    for part in ("dense", "quantized"):
        made = tmp_path / f"{part}.o"
        source = SOURCE / f"instruction_set/{part}.cpp"
        compile_(*flags.split(), *names, *sets, "-c", source, "-o", made)
        assert made.stat().st_size > 0


def test_the_checks_of_the_emulated_machine_hold_for_emulated_tiles(library_path: Path) -> None:
    """Those that need no real instructions; so the program compiles with what it tests."""
    objects = [o for o in library_path.parent.glob("*.o") if o.name != "runtime_self_test.o"]
    program = library_path.with_name("amx_guest")
    here = Path(__file__).parent / "amx_guest.cpp"
    compile_(*EMULATED, f"-I{SOURCE}", here, *objects, "-o", program)
    run = subprocess.run(
        [program],
        env={"checks": "numbers,quantized,fork"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert " 0 failed" in run.stdout
