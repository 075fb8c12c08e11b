"""The library's C++ sources: each header can be opened alone, and rooms look downwards only."""

import ast
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loire.base.errors import ConfigError
from loire.base.machine import usable_cores
from loire.kernels.native import calls, library

SOURCE = Path(library.__file__).parent / "source"
HEADERS = sorted(SOURCE.glob("*/*.h"))
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
BELOW = {
    "kernels": {"kernels"},
    "instruction_set": {"kernels", "instruction_set"},
    "runtime": {"kernels", "runtime"},
    "api": {"kernels", "runtime", "api"},
}
"""What files of a room may include."""

FLAGS: dict[str, list[str]] = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    avx512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-DLOIRE_AVX512"]
    FLAGS["avx512_bf16"] = [
        *avx512,
        "-mavx512bf16",
        "-mavx512vnni",
        "-DLOIRE_AVX512_BF16",
        "-DLOIRE_AMX",
    ]


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("name", FLAGS)
def test_each_header_includes_what_it_uses(name: str, tmp_path: Path) -> None:
    assert COMPILER is not None
    rooms = BELOW if name == "portable" else BELOW["instruction_set"]
    headers = [header for header in HEADERS if header.parent.name in rooms]
    assert len(headers) > 20
    # One run of the compiler for many on each core, each opened as a file of its own.
    sources = []
    for header in headers:
        sources.append(tmp_path / f"{header.parent.name}_{header.stem}.cpp")
        sources[-1].write_text(f'#include "{header}"\n')
    flags = "-std=c++17", "-fsyntax-only", "-w", "-DLOIRE_TABLE=some"
    cores = usable_cores()

    def opened(first: int) -> str:
        some = map(str, sources[first::cores])
        command = [COMPILER, *flags, *FLAGS[name], *some]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        return run.stderr if run.returncode else ""

    with ThreadPoolExecutor(cores) as pool:
        assert "".join(pool.map(opened, range(cores))) == ""


def test_headers_are_read_once() -> None:
    for header in HEADERS:
        assert header.read_text().count("#pragma once") == 1, header


def test_rooms_include_only_what_is_below_them() -> None:
    for path in [*HEADERS, *SOURCE.glob("*/*.cpp")]:
        for included in re.findall(r'#include "(.+)"', path.read_text()):
            target = (path.parent / included).resolve()
            assert target.exists(), f"{path.name} includes {included}"
            assert target.parent.name in BELOW[path.parent.name], f"{path.name}: {included}"


def test_kernels_include_no_library_of_cpp() -> None:
    """Its inline functions would be compiled with the flags of one instruction set, for all."""
    allowed = {"cstddef", "cstdint", "immintrin.h", "arm_neon.h"}
    for path in [*(SOURCE / "kernels").iterdir(), *(SOURCE / "instruction_set").iterdir()]:
        assert set(re.findall(r"#include <(.+)>", path.read_text())) <= allowed, path.name


# --- the structs of calls -------------------------------------------------------------------------


def test_a_library_with_other_structs_is_refused() -> None:
    ours = calls.layout()
    library.check_layout(Path("lib.so"), ours)
    for before, after in (
        ("slots:P@88", "slots:q@88"),  # another type
        ("AttendCall{ plan:P@0 queries:P@8", "AttendCall{ queries:P@0 plan:P@8"),  # another order
        ("window:q@112 ", ""),  # a field less
    ):
        theirs = ours.replace(before, after)
        assert theirs != ours
        wrong = "AttendCall" if "slots" not in before else "RotaryCall"
        with pytest.raises(OSError, match=rf"lib.so has other structs .*\({wrong}\); install"):
            library.check_layout(Path("lib.so"), theirs)


def test_an_older_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not library.LIBRARY_PATH.exists():
        pytest.skip("there is no library")
    monkeypatch.setattr(library, "INTERFACE_VERSION", 10**6)
    library.load_library.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"but 1000000 is needed; install Loire again"):
            library.load_library()
    finally:
        library.load_library.cache_clear()


def test_calls_are_given_all_their_fields() -> None:
    """What is left out would be zero."""
    structs = {struct.__name__: struct for struct in calls.CallStruct.__subclasses__()}
    found = set()
    for path in Path(library.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = (
                node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            )
            if name not in structs:
                continue
            assert not node.args, f"{path.name}: {name}"
            given = sorted(keyword.arg or "**" for keyword in node.keywords)
            assert given == sorted(field[0] for field in structs[name]._fields_), path.name
            found.add(name)
    assert found == set(structs)


def test_a_name_that_is_no_field_is_refused() -> None:
    with pytest.raises(AttributeError, match="element"):
        calls.DequantizeCall(element=1)
