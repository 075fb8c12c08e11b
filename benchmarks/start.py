"""How long `loire serve` takes until it is ready, and where the time goes.

    python benchmarks/start.py [MODEL]
    python benchmarks/start.py --beside /path/to/another/checkout/src

--beside starts that source tree in turns with this one; its native library must be compiled. Each
line is a start: seconds until /health/ready says so, and in a process of its own until torch is
imported, until the engine's modules are, and until the engine is loaded. Medians come last.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

STAGES = """
import sys, time
started = time.perf_counter()
from loire.base.config import EngineOptions
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
import torch
torch_s = time.perf_counter() - started
from loire.engine.start import load_engine
from loire.execution import build
imports_s = time.perf_counter() - started
load_engine(open_checkpoint(resolve_model(sys.argv[1])), EngineOptions(), name="model")
print(torch_s, imports_s - torch_s, time.perf_counter() - started - imports_s)
"""
OWN = Path(__file__).parent.parent / "src"
PORT = 8641


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sources = [OWN] if args.beside is None else [args.beside, OWN]
    found: dict[Path, list[list[float]]] = {source: [] for source in sources}
    for _ in range(args.repeats):
        for source in sources:
            times = [served_s(args.model, source), *stages_s(args.model, source)]
            found[source].append(times)
            show(source, times)
    print("medians")
    for source, rows in found.items():
        show(source, [statistics.median(column) for column in zip(*rows, strict=True)])


def served_s(model: str, source: Path) -> float:
    """From the command until ready."""
    command = [sys.executable, "-m", "loire", "serve", model, "--port", str(PORT)]
    started = time.perf_counter()
    server = subprocess.Popen(command, env=environment(source), stderr=subprocess.DEVNULL)
    try:
        while True:
            time.sleep(0.02)
            if server.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with status {server.returncode}")
            try:
                if httpx.get(f"http://127.0.0.1:{PORT}/health/ready").status_code == 200:
                    return time.perf_counter() - started
            except httpx.ConnectError:
                continue
    finally:
        server.terminate()
        server.wait(30)


def stages_s(model: str, source: Path) -> list[float]:
    command = [sys.executable, "-c", STAGES, model]
    done = subprocess.run(command, env=environment(source), check=True, capture_output=True)
    return [float(part) for part in done.stdout.split()]


def environment(source: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(source)}


def show(source: Path, times: list[float]) -> None:
    served, torch_s, modules, loading = times
    print(
        f"ready {served:.2f} s; torch {torch_s:.2f}, modules {modules:.2f}, "
        f"loading {loading:.2f}  {source}",
        flush=True,
    )


if __name__ == "__main__":
    main()
