"""The optional compiled library; everything else about the package is in pyproject.toml."""

import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCE = Path("src/loire/kernels/native/source")
PARTS = sorted((SOURCE / "instruction_set").glob("*.cpp"))
"""Of what each instruction set provides."""
FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
# Intrinsics of gcc start from values that they leave unset on purpose.
FLAGS += ["-Wno-psabi", "-Wno-maybe-uninitialized"]

AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-DLOIRE_AVX512"]
AVX512_BF16 = [*AVX512, "-mavx512bf16", "-mavx512vnni", "-DLOIRE_AVX512_BF16"]
AMX = ["-mamx-tile", "-mamx-bf16", "-mamx-int8"]
INSTRUCTION_SETS: dict[str, list[str]] = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {
        "avx2": ["-mavx2", "-mfma", "-mf16c", "-DLOIRE_AVX2"],
        "avx512": AVX512,
        "avx512_bf16": AVX512_BF16,
        "amx": [*AVX512_BF16, *AMX, "-DLOIRE_AMX"],
    }
elif platform.machine() in ("aarch64", "arm64"):
    INSTRUCTION_SETS |= {
        "neon": ["-DLOIRE_NEON"],
        "neon_dotprod": ["-march=armv8.2-a+dotprod", "-DLOIRE_NEON", "-DLOIRE_DOTPROD"],
    }


class Job(NamedTuple):
    """A source to compile, and where to below the folder of what is built."""

    source: Path
    folder: str
    macros: list[tuple[str, str | None]]
    flags: list[str]


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class BuildNative(build_ext):
    """Compiles the kernels once per instruction set, each with its own flags, on all cores.

    Which of them runs is decided on the machine that runs it, so nothing depends on the machine
    that compiles.
    """

    def get_ext_filename(self, fullname: str) -> str:
        """A plain shared library, loaded by ctypes: no Python version or ABI in its name."""
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No module initialisation to export."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Compile and link ext's sources and the kernels."""
        sets = dict(INSTRUCTION_SETS)
        if "amx" in sets and not self.knows_amx():
            self.announce("the compiler does not know AMX: left out", level=3)
            del sets["amx"]
        jobs = [
            Job(path, name, [("LOIRE_TABLE", name), ("LOIRE_NAME", f'"{name}"')], flags)
            for path in PARTS
            for name, flags in sets.items()
        ]
        macros = [("LOIRE_HAS_AMX", None)] if "amx" in sets else []
        jobs += [Job(Path(path), "", macros, []) for path in ext.sources if Path(path) not in PARTS]
        for job in jobs:
            self.mkpath(str(Path(self.build_temp) / job.folder / job.source.parent))
        with ThreadPoolExecutor(usable_cores()) as pool:
            objects = list(pool.map(self.compile_one, jobs))
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=["-pthread"],
            target_lang="c++",
        )

    def compile_one(self, job: Job) -> str:
        """The object file of a source."""
        [found] = self.compiler.compile(
            [str(job.source)],
            output_dir=str(Path(self.build_temp) / job.folder),
            macros=list(job.macros),
            extra_postargs=[*FLAGS, *job.flags],
        )
        return found

    def knows_amx(self) -> bool:
        """Whether compiler and assembler know its instructions: g++ 11, clang++ 12."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "amx.cpp"
            source.write_text(
                'void f() { asm volatile("tdpbf16ps %tmm6, %tmm4, %tmm0\\n\\ttilerelease"); }\n'
            )
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=AMX)
            except CompileError:
                return False
        return True


setup(
    cmdclass={"build_ext": BuildNative},
    ext_modules=[
        Extension(
            "loire.kernels.native.libloire_native",
            sources=[str(path) for path in sorted(SOURCE.glob("*/*.cpp"))],
            depends=[str(path) for path in sorted(SOURCE.glob("*/*.h"))],
            language="c++",
            optional=True,
        )
    ],
)
