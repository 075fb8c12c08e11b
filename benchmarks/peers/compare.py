"""Loire beside another engine in one run, taking turns, as ratios.

    python benchmarks/peers/compare.py --vllm /path/to/venv/bin/python --model DIR \
        --workload W2.json --workload W3.json

Both engines are loaded first and idle while the other works; variant 0 of a workload warms both
up, then each variant is run by one and by the other, alternating who begins. DIR is a Hugging
Face directory that both can read. Prints a line per run, medians of ratios, JSON last.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from protocol import MARKER

HERE = Path(__file__).parent


class Peer:
    """An engine in a process of its own."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE), **environment},
        )
        self._answer()

    def run(self, workload: Path, variant: int) -> dict[str, float]:
        assert self.process.stdin is not None
        order = {"workload": str(workload.resolve()), "variant": variant}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARKER):
                answer: dict[str, float] = json.loads(line.removeprefix(MARKER))
                return answer
        raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", required=True, help="python of vLLM's virtual environment")
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", action="append", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--prefix", action="store_true", help="with prefix caching")
    parser.add_argument("--preload", default="", help="LD_PRELOAD of vLLM (tcmalloc, libiomp5)")
    parser.add_argument("--repeat", type=int, default=1, help="of workloads with one variant")
    args = parser.parse_args()
    prefix = ["--prefix"] if args.prefix else []
    common = [args.model, "--dtype", args.dtype, *prefix]
    loire = Peer(
        "loire",
        [sys.executable, str(HERE / "loire_child.py"), *common, "--kernels", args.kernels],
        {},
    )
    preload = {"LD_PRELOAD": args.preload} if args.preload else {}
    vllm = Peer("vllm", [args.vllm, str(HERE / "vllm_child.py"), *common], preload)
    report = {path.stem: compare(loire, vllm, path, args.repeat) for path in args.workload}
    loire.close()
    vllm.close()
    print(json.dumps(report))


def compare(loire: Peer, rival: Peer, path: Path, repeat: int) -> dict[str, float]:
    count = len(json.loads(path.read_text())["variants"])
    variants = list(range(1, count)) if count > 1 else [0] * repeat
    for peer in (loire, rival):
        peer.run(path, 0)
    ratios: dict[str, list[float]] = {"wall_s": [], "ttft_s": [], "tpot_s": []}
    for turn, variant in enumerate(variants):
        order = (loire, rival) if turn % 2 == 0 else (rival, loire)
        results = {peer.name: peer.run(path, variant) for peer in order}
        for name, result in results.items():
            print(
                f"{path.stem} {variant} {name:<6} {result['wall_s']:8.3f} s  "
                f"{result['output_tokens'] / result['wall_s']:8.1f} output tok/s  "
                f"TTFT {result['ttft_s']:.3f} s  "
                f"decode {1 / result['tpot_s'] if result['tpot_s'] else 0:7.2f} tok/s",
                flush=True,
            )
        for key, values in ratios.items():
            if results[loire.name][key] > 0:
                values.append(results[rival.name][key] / results[loire.name][key])
    medians = {key: statistics.median(values) for key, values in ratios.items() if values}
    print(
        f"{path.stem}: Loire is "
        + ", ".join(f"{value:.2f}x {rival.name} in {key}" for key, value in medians.items())
    )
    return medians


if __name__ == "__main__":
    main()
