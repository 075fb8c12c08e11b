"""How long a file takes to load, and how much memory, in Loire and in llama.cpp.

    python benchmarks/load.py FILE ... [--llama-cpp BIN] [--ik-llama-cpp BIN] [--turns 2] [--cold]

Each load has a process of its own, two threads and a context of 512 tokens; engines take turns. BIN
is the folder that holds a llama-batched-bench; directories of safetensors are for Loire alone.
Shown are the seconds until the engine says that the model is loaded (where it does not, those of
the process without its tokens'), the seconds of the whole process with one prompt token and one
more (engines that map the file read it then), processor time, the most memory of its own
(anonymous; what is mapped from the file can be dropped), the most of all, and for Loire what `loire
plan` says of the weights. --cold drops the file from the page cache before each load, as far as the
system does so. The least of all turns; JSON last.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gguf_peers import LOADED

THREADS = 2
CONTEXT = 512
POLL_S = 0.01
LIMIT_S = 900
_ROW = re.compile(r"^\|(?:\s*[\d.]+\s*\|){8}\s*([\d.]+)\s*\|\s*[\d.]+\s*\|\s*$", re.MULTILINE)
"""Of llama-batched-bench; the seconds of all tokens."""
_OWN = re.compile(r"^RssAnon:\s*(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Load:
    """One process, or the least of several."""

    loaded_s: float
    whole_s: float
    processor_s: float
    own_bytes: int
    all_bytes: int
    planned_bytes: int = 0


def main() -> None:
    args = _arguments()
    if args.child:
        print(json.dumps(_child(args.files[0])))
        return
    results = {}
    for file in args.files:
        size = sum(path.stat().st_size for path in _weights(file))
        print(f"{file.name}: {size / 1e9:.2f} GB", flush=True)
        found: dict[str, list[Load]] = {}
        for _ in range(args.turns):
            for name, command in _commands(args, file).items():
                if args.cold:
                    _drop(file)
                found.setdefault(name, []).append(_run(command))
        least = {name: _least(loads) for name, loads in found.items()}
        for name, load in least.items():
            planned = f", planned {load.planned_bytes / 1e9:.2f}" if load.planned_bytes else ""
            print(
                f"  {name:<13} loaded in {load.loaded_s:6.2f} s ({size / load.loaded_s / 1e9:.2f} "
                f"GB/s), whole {load.whole_s:6.2f} s, processor {load.processor_s:6.2f} s; "
                f"{load.own_bytes / 1e9:.2f} GB of its own, {load.all_bytes / 1e9:.2f} in all"
                f"{planned}",
                flush=True,
            )
        results[file.name] = {
            "bytes": size,
            **{name: asdict(load) for name, load in least.items()},
        }
    print(json.dumps(results))


def _commands(args: argparse.Namespace, file: Path) -> dict[str, list[str]]:
    commands = {"Loire": [sys.executable, __file__, str(file), "--child"]}
    for name, folder in (("llama.cpp", args.llama_cpp), ("ik_llama.cpp", args.ik_llama_cpp)):
        if folder is not None and file.is_file():
            commands[name] = [
                str(folder / "llama-batched-bench"), "-m", str(file), "-t", str(THREADS),
                "-c", str(CONTEXT), "-npp", "1", "-ntg", "1", "-npl", "1",
            ]  # fmt: skip
    return commands


def _run(command: list[str]) -> Load:
    """A process to its end, watched."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        own, pid = 0, 0
        while pid == 0:
            own = max(own, _own_bytes(process.pid))
            if time.monotonic() - start > LIMIT_S:
                process.kill()
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            time.sleep(POLL_S)
        whole_s = time.monotonic() - start
        output.seek(0)
        said = output.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said[-2000:]}")
    if match := LOADED.search(said):
        told = {"loaded_s": float(match[1]) / 1000}
    elif match := _ROW.search(said):
        told = {"loaded_s": whole_s - float(match[1])}
    else:
        told = json.loads(said.splitlines()[-1])
    return Load(
        loaded_s=told["loaded_s"],
        whole_s=whole_s,
        processor_s=usage.ru_utime + usage.ru_stime,
        own_bytes=own,
        all_bytes=usage.ru_maxrss * 1024,
        planned_bytes=int(told.get("planned_bytes", 0)),
    )


def _own_bytes(pid: int) -> int:
    try:
        match = _OWN.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:  # it has just ended
        return 0
    return int(match[1]) * 1024 if match else 0


def _child(file: Path) -> dict[str, float]:
    """In a process of its own: what Loire does."""
    from loire import LLM, SamplingParams
    from loire.checkpoint.open import open_checkpoint
    from loire.planning.model_size import size_of_checkpoint

    start = time.monotonic()
    llm = LLM(
        str(file),
        num_threads=THREADS,
        max_model_len=CONTEXT,
        kv_cache_memory_bytes=2**26,
        enable_prefix_caching=False,
    )
    loaded_s = time.monotonic() - start
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    llm.generate([{"prompt_token_ids": [1]}], params)
    planned = size_of_checkpoint(
        open_checkpoint(file),
        file.name,
        dtype="bfloat16",
        quantization=None,
        kv_dtype="bfloat16",
        on_cpu=True,
    )
    return {"loaded_s": loaded_s, "planned_bytes": float(planned.weight_bytes)}


def _least(loads: list[Load]) -> Load:
    columns = zip(*(asdict(load).values() for load in loads), strict=True)
    return Load(*map(min, columns))


def _weights(file: Path) -> list[Path]:
    return [file] if file.is_file() else sorted(file.glob("*.safetensors"))


def _drop(file: Path) -> None:
    """Of the page cache; what has not been written yet stays."""
    for path in _weights(file):
        with path.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=lambda name: Path(name).resolve(), nargs="+", metavar="FILE")
    parser.add_argument("--llama-cpp", type=Path, metavar="BIN")
    parser.add_argument("--ik-llama-cpp", type=Path, metavar="BIN")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
