"""What a model loses in fewer bits: Loire's own formats beside llama.cpp's, at the same text.

    python benchmarks/on_device.py MODEL.gguf OUT --text FILE --llama-cpp BIN [--bits 8,4,3.5,3]

The model is expanded to F16 first, and llama-quantize makes its types from that (BIN is the folder
that holds it). `loire quantize` makes --bits of the model, and once more as many bits as give the
size of --same-size. The plainest four bits stand beside them: one scale per row, each number
rounded to the nearest. Sizes are those of the tensors, as vocabularies take as much in each file.
All are measured in Loire; what is named in --in-llama-cpp is measured by llama-perplexity, too.
Lost nats are the mean of differences from the original, token by token, with their standard error.
What `loire adapt` repairs of --repaired bits, as it is without flags, is a row of its own.

What is in OUT already is not made again. Rows as they are found, JSON last. With --speeds TURNS
nothing is made or measured but tokens per second of one stream (128 tokens behind a prompt of 128)
of the files that are there, taking turns: Loire's own and the original in Loire, llama.cpp's types
and the original in llama.cpp.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ggml
import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf_peers import batched_bench, of_child
from numpy.typing import NDArray

from loire import LLM
from loire.adapt.run import Training, adapt
from loire.adapt.texts import own_texts
from loire.base.lora import LoRARequest
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
from loire.cli.quantize import OWN_TEXTS
from loire.quantize.calibration import read_text
from loire.quantize.run import quantize
from loire.text.tokenizer import checkpoint_tokenizer
from loire.workloads.perplexity import Perplexity, chunk_losses

CONTEXT = 512
LARGEST_CODE = 7
TRIES = 5
"""Of llama-perplexity, which now and then ends before it has written its last line."""
_FOUND = re.compile(r"Final estimate: PPL = ([\d.]+)")


@dataclass(frozen=True, slots=True)
class Row:
    """A model that is measured."""

    name: str
    path: Path
    num_bytes: int
    """Of its tensors."""
    bits: float
    """Of its matrices, per weight."""
    adapter: Path | None = None
    """With which it is measured."""

    @classmethod
    def of(cls, name: str, path: Path) -> "Row":
        checkpoint = open_checkpoint(path)
        return cls(name, path, checkpoint.weight_bytes, bits_of(checkpoint))


def main() -> None:
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    if args.speeds:
        _speeds(args)
        return
    text = args.text.read_text().removesuffix("\n")
    found: list[dict[str, object]] = []
    original: NDArray[np.float64] | None = None
    for row in _rows(args):
        with LLM(str(row.path), max_model_len=CONTEXT + 1, num_threads=args.threads) as llm:
            adapter = None if row.adapter is None else LoRARequest("", 1, str(row.adapter))
            losses = chunk_losses(
                llm, text, context=CONTEXT, most_chunks=args.chunks, lora_request=adapter
            )
        each = np.concatenate(losses)
        original = each if original is None else original
        lost, perplexity = each - original, Perplexity.of(losses).perplexity
        error = float(lost.std() / math.sqrt(len(lost)))
        theirs = _theirs(args, row) if row.name in args.in_llama_cpp else None
        print(
            f"{row.name:<24} {row.num_bytes / 1e6:7.1f} MB {row.bits:6.2f} bits  perplexity "
            f"{perplexity:8.3f}  {lost.mean():+.4f} ± {error:.4f} nats"
            + ("" if theirs is None else f"  ({theirs:.3f} in llama.cpp)"),
            flush=True,
        )
        measured: dict[str, object] = {
            "name": row.name, "bytes": row.num_bytes, "bits": row.bits, "tokens": len(each),
            "perplexity": perplexity, "lost_nats": float(lost.mean()), "error": error,
            "llama_cpp": theirs,
        }  # fmt: skip
        found.append(measured)
    print(json.dumps({"model": str(args.model), "text": args.text.name, "rows": found}))


def _rows(args: argparse.Namespace) -> Iterator[Row]:
    """Each when it is its turn to be made."""
    source = resolve_model(args.model).absolute()
    yield Row.of("original", source)
    plain = args.out / "F16.gguf"
    _llama_quantize(args, source, plain, "F16")
    same_size: Row | None = None
    for kind in args.types:
        path = args.out / f"{kind}.gguf"
        _llama_quantize(args, plain, path, kind)
        row = Row.of(kind, path)
        same_size = row if kind == args.same_size else same_size
        yield row
    path = args.out / "row-scales.gguf"
    if not path.exists():
        write_row_scales(plain, path)
    elements, rows = _matrices(open_checkpoint(path))
    yield Row("4 bits, scale per row", path, elements // 2 + 2 * rows, 4 + 16 * rows / elements)
    sizes = list(args.bits)
    if same_size is not None:
        # (Norms and the like are not counted in bits, and stay as they are.)
        sizes.insert(0, math.floor(same_size.bits * 1000) / 1000)
    for bits in sizes:
        yield _loire(args, source, f"--bits {bits:g}", bits, "")
    for bits in args.gguf_bits:
        yield _loire(args, source, f"--bits {bits:g} .gguf", bits, ".gguf")
    for bits in args.repaired:
        yield _repaired(args, source, bits)


def _loire(args: argparse.Namespace, source: Path, name: str, bits: float, ending: str) -> Row:
    path = args.out / f"loire-{bits:g}{ending}"
    if not path.exists():
        checkpoint, text = open_checkpoint(source), read_text(args.calibration)
        own = args.out / "own.json"
        if not own.exists():
            found = own_texts(checkpoint, text, args.own_texts, lambda share: None)
            own.write_text(json.dumps(found))
        quantize(
            checkpoint,
            checkpoint_tokenizer(checkpoint),
            text,
            path,
            bits,
            file_format="gguf" if ending else "safetensors",
            kept=args.out / "measured",
            num_own=args.own_texts,
            write=lambda count: json.loads(own.read_text()),
        )
    return Row.of(name, path)


def _repaired(args: argparse.Namespace, source: Path, bits: float) -> Row:
    row = _loire(args, source, f"--bits {bits:g}, repaired", bits, "")
    path = args.out / f"adapter-{bits:g}"
    if not path.exists():
        report = adapt(open_checkpoint(row.path), open_checkpoint(source), path, Training())
        print(json.dumps({"kept_text": report.as_dict()}), flush=True)
    files = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return Row(row.name, row.path, row.num_bytes + files, row.bits, path)


def _speeds(args: argparse.Namespace) -> None:
    """Of files that are there: shown, JSON last."""
    source = resolve_model(args.model).absolute()
    loire = {f"--bits {bits:g}": args.out / f"loire-{bits:g}" for bits in args.bits}
    theirs = {kind: args.out / f"{kind}.gguf" for kind in args.types}
    runs = [("Loire", name, path) for name, path in {"original": source, **loire}.items()]
    runs += [("llama.cpp", name, path) for name, path in {"original": source, **theirs}.items()]
    runs = [run for run in runs if run[2].exists()]
    found: dict[tuple[str, str], list[float]] = {}
    for turn in range(args.speeds):
        first = turn * len(loire) % len(runs)
        for engine, name, path in runs[first:] + runs[:first]:
            if engine == "Loire":
                speed = of_child("loire", path, ["one"])["speeds"]["one"]
            else:
                speed = batched_bench(args.llama_cpp, path, ["one"]).speeds["one"]
            found.setdefault((engine, name), []).append(speed)
    medians = {key: statistics.median(speeds) for key, speeds in found.items()}
    for engine, name, _ in runs:
        each = ", ".join(f"{speed:.1f}" for speed in found[engine, name])
        print(f"{engine:<10} {name:<12} {medians[engine, name]:7.1f} tokens/s  ({each})")
    rows = [{"engine": key[0], "name": key[1], "tokens_per_s": found[key]} for key in found]
    print(json.dumps({"model": str(args.model), "rows": rows}))


def _llama_quantize(args: argparse.Namespace, source: Path, path: Path, kind: str) -> None:
    if path.exists():
        return
    new = path.with_suffix(".new")
    command = [args.llama_cpp / "llama-quantize", "--allow-requantize", source, new, kind]
    finished = subprocess.run(
        [*command, str(args.threads)], capture_output=True, text=True, cwd=args.out
    )
    if finished.returncode != 0:
        raise RuntimeError(f"{kind}: {(finished.stdout + finished.stderr)[-2000:]}")
    new.rename(path)


def _theirs(args: argparse.Namespace, row: Row) -> float:
    """The perplexity that llama.cpp finds."""
    command = [
        args.llama_cpp / "llama-perplexity", "-m", row.path, "-f", args.text, "-c", str(CONTEXT),
        "-t", str(args.threads),
    ]  # fmt: skip
    chunks = [] if args.chunks is None else ["--chunks", str(args.chunks)]
    said = ""
    for _ in range(TRIES):
        finished = subprocess.run([*command, *chunks], capture_output=True, text=True, cwd=args.out)
        said = finished.stdout + finished.stderr
        match = _FOUND.search(said)
        if match is not None:
            return float(match[1])
    raise RuntimeError(f"{row.name}: {said[-2000:]}")


def write_row_scales(source: Path, path: Path) -> None:
    """All matrices as codes of -7 to 7 times a scale per row give them, in F16."""
    reader = gguf.GGUFReader(source)

    def tensor(read: gguf.ReaderTensor) -> ggml.Tensor:
        values = np.asarray(gguf.dequantize(read.data, read.tensor_type), dtype=np.float32)
        if values.ndim == 1:
            return ggml.Tensor(read.name, Type.F32, values.shape, lambda: values)

        def rounded() -> NDArray[np.float16]:
            scales = np.abs(values).max(axis=1, keepdims=True) / LARGEST_CODE
            codes = np.rint(values / np.where(scales == 0, 1, scales))
            return (codes * scales).astype(np.float16)

        return ggml.Tensor(read.name, Type.F16, values.shape, rounded)

    new = path.with_suffix(".new")
    ggml.write(new, ggml.read_fields(reader), [tensor(read) for read in reader.tensors])
    new.rename(path)


def bits_of(checkpoint: Checkpoint) -> float:
    """Per weight, of matrices alone."""
    elements, _ = _matrices(checkpoint)
    size = sum(info.stored_bytes for info in checkpoint.tensors.values() if len(info.shape) > 1)
    return size * 8 / elements


def _matrices(checkpoint: Checkpoint) -> tuple[int, int]:
    """Their elements and their rows."""
    shapes = [info.shape for info in checkpoint.tensors.values() if len(info.shape) > 1]
    return sum(map(math.prod, shapes)), sum(math.prod(shape[:-1]) for shape in shapes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a GGUF file, or a name that stands for one")
    parser.add_argument("out", type=lambda text: Path(text).absolute(), help="a folder")
    parser.add_argument("--text", type=lambda text: Path(text).absolute())
    parser.add_argument("--chunks", type=int, help=f"only so many of {CONTEXT} tokens [all]")
    parser.add_argument("--llama-cpp", type=Path, required=True, metavar="BIN")
    types = ["Q8_0", "Q4_K_M", "Q3_K_M", "IQ3_XS"]
    parser.add_argument("--types", type=_names, default=types, metavar="TYPE,...")
    parser.add_argument("--bits", type=_numbers, default=[8.0, 4.0, 3.5, 3.0], metavar="BITS,...")
    parser.add_argument("--same-size", default="Q3_K_M", metavar="TYPE")
    parser.add_argument("--gguf-bits", type=_numbers, default=[], help="as GGUF files")
    parser.add_argument("--repaired", type=_numbers, default=[], metavar="BITS,...")
    parser.add_argument("--in-llama-cpp", type=_names, default=[], metavar="NAME,...")
    parser.add_argument("--calibration", metavar="FILE", help="[what comes with Loire]")
    parser.add_argument("--own-texts", type=int, default=OWN_TEXTS, help=f"[{OWN_TEXTS}]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speeds", type=int, default=0, metavar="TURNS")
    args = parser.parse_args()
    if args.text is None and not args.speeds:
        parser.error("--text is needed")
    return args


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in _names(text)]


if __name__ == "__main__":
    main()
