"""Loire beside other engines on this machine, taking turns, as ratios and shares of the limit.

    python benchmarks/peers.py --model DIR --workload W1.json W2.json --shared-prefix W3.json \
        --formats bf16,int8,int4 --prefill 2048 \
        --vllm VENV/bin/python --openvino VENV/bin/python --llama-cpp BUILD/bin --gguf BF16.gguf

Runs Loire and whichever rivals it is given; --before names another checkout of Loire with its
.venv, to compare two versions of it. For each format all engines are loaded, and stopped
but for the one whose turn it is; variant 0 of a workload, cut short, warms each up; then every
turn runs all of them on the same variant, each time beginning with another. DIR is a Hugging Face
directory. What the others read in 8 and 4 bits is made from it once (--prepared): W8A8 and W4A16
of compressed-tensors for vLLM, an export by optimum-cli for OpenVINO (fp16 weights stand for bf16),
Q8_0 and Q4_0 by llama-quantize. The GGUF file in bf16 is what llama.cpp's convert_hf_to_gguf.py DIR
--outtype bf16 writes.

Prints each run, a table of medians, JSON last. Workloads after --shared-prefix run with prefix
caching (without llama.cpp, whose slots share none), the others without.
"""

import argparse
import ctypes.util
import json
import os
import random
import signal
import sys
from pathlib import Path

from peers import checkpoints
from peers.checkpoints import Format
from peers.comparison import Result, table, take_turns
from peers.process import HERE, Peer

from loire.workloads.loads import Load, plain_tokens, read_workload

FORMATS: tuple[Format, ...] = ("bf16", "int8", "int4")
KV_BYTES = 2 * 2**30
PREFILL_VARIANTS = 3
SMALLEST_VOCABULARY = 32_000


def main() -> None:
    args = _arguments()
    # However this ends, the engines, which are stopped most of the time, must not stay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    workloads: list[Path] = list(args.workload)
    if args.prefill:
        workloads.append(_prefill_workload(args.prepared, args.prefill))
    results: list[Result] = []
    for number_format in args.formats:
        for paths, prefix in ((workloads, False), (args.shared_prefix, True)):
            if paths:
                results += _compare(args, number_format, paths, prefix)
    print(table(results))
    print(json.dumps({"results": [result.as_dict() for result in results]}))


def _compare(
    args: argparse.Namespace,
    number_format: Format,
    paths: list[Path],
    prefix: bool,
) -> list[Result]:
    loads = [load for path in paths for load in read_workload(path)]
    peers: list[Peer] = []
    try:
        for name, command, environment in _commands(args, number_format, loads, prefix):
            log = args.prepared / f"{name}-{number_format}.log"
            peer = Peer(name, command, environment, log)
            print(f"{peer.engine}: ready after {peer.start_s:.1f} s", flush=True)
            peers.append(peer)
        results = []
        for path in paths:
            results += take_turns(
                peers,
                args.model,
                number_format,
                path,
                prefix=prefix,
                repeat=args.repeat,
            )
        return results
    finally:
        for peer in peers:
            peer.close()


def _commands(
    args: argparse.Namespace, number_format: Format, loads: list[Load], prefix: bool
) -> list[tuple[str, list[str], dict[str, str]]]:
    """Name, command line and environment of each engine, Loire first."""
    common = ["--kv-bytes", str(KV_BYTES), *(["--prefix"] if prefix else [])]
    commands: list[tuple[str, list[str], dict[str, str]]] = []

    def add(
        name: str, python: str, arguments: list[str], environment: dict[str, str] | None = None
    ) -> None:
        script = str(HERE / f"{name}_child.py")
        commands.append((name, [python, script, *arguments], environment or {}))

    loire = [str(args.model), "--format", number_format, *common]
    add("loire", sys.executable, loire)
    if args.before:
        script = args.before / "benchmarks" / "peers" / "loire_child.py"
        python = args.before / ".venv" / "bin" / "python"
        commands.append(("before", [str(python), str(script), *loire], {}))
    if args.vllm:
        source = checkpoints.for_vllm(args.model, args.prepared, number_format)
        add(
            "vllm",
            str(args.vllm),
            [str(source.path), "--label", source.label, *common],
            _vllm_environment(args.vllm),
        )
    if args.openvino:
        source = checkpoints.for_openvino(args.model, args.prepared, number_format, args.openvino)
        add("openvino", str(args.openvino), [str(source.path), "--label", source.label, *common])
    if args.llama_cpp and not prefix:
        source = checkpoints.for_llama_cpp(args.gguf, args.prepared, number_format, args.llama_cpp)
        longest = max(
            len(r.prompt_token_ids) + r.num_output for load in loads for r in load.requests
        )
        arguments = [
            str(source.path), "--bin", str(args.llama_cpp), "--label", source.label,
            "--threads", str(os.cpu_count() or 1), "--length", str(longest + 1),
            "--slots", str(max(len(load.requests) for load in loads)),
        ]  # fmt: skip
        add("llama_cpp", sys.executable, arguments)
    return commands


def _vllm_environment(python: Path) -> dict[str, str]:
    """What vLLM's documentation asks for on CPUs, if present: tcmalloc and Intel's OpenMP."""
    found = [python.parent.parent / "lib" / "libiomp5.so"]
    preloads = [str(path) for path in found if path.exists()]
    tcmalloc = ctypes.util.find_library("tcmalloc_minimal")
    if tcmalloc is not None:
        preloads.insert(0, tcmalloc)
    return {"LD_PRELOAD": ":".join(preloads)} if preloads else {}


def _prefill_workload(prepared: Path, num_tokens: int) -> Path:
    """One random prompt of that many tokens, of which one token is generated."""
    prepared.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    variants = [
        [{"prompt": plain_tokens(rng, num_tokens, SMALLEST_VOCABULARY), "out": 1}]
        for _ in range(PREFILL_VARIANTS)
    ]
    path = prepared / f"prefill-{num_tokens}.json"
    path.write_text(json.dumps({"name": path.stem, "variants": variants}))
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--workload", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--shared-prefix", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--prefill", type=int, metavar="TOKENS", help="a prompt of random tokens")
    parser.add_argument("--formats", type=_formats, default=FORMATS, help="of bf16,int8,int4")
    parser.add_argument("--repeat", type=int, default=1, help="of workloads with one variant")
    parser.add_argument("--prepared", type=Path, help="models made for the others: DIR-peers")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="of Loire, with .venv")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    parser.add_argument(
        "--openvino", type=Path, metavar="PYTHON", help="with optimum-cli beside it"
    )
    parser.add_argument("--llama-cpp", type=Path, metavar="BINDIR")
    parser.add_argument("--gguf", type=Path, help="the model in bf16 for llama.cpp")
    args = parser.parse_args()
    if not (args.workload or args.shared_prefix or args.prefill):
        parser.error("nothing to run: give --workload, --shared-prefix or --prefill")
    if args.llama_cpp and not args.gguf:
        parser.error("--llama-cpp needs --gguf, the model in bf16 (convert_hf_to_gguf.py)")
    if args.prepared is None:
        args.prepared = args.model.with_name(args.model.name + "-peers")
    args.prepared.mkdir(parents=True, exist_ok=True)
    return args


def _formats(text: str) -> tuple[Format, ...]:
    chosen = tuple(name for name in FORMATS if name in text.split(","))
    unknown = set(text.split(",")) - set(FORMATS)
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no format {', '.join(sorted(unknown))}; there are {', '.join(FORMATS)}"
        )
    return chosen


if __name__ == "__main__":
    main()
