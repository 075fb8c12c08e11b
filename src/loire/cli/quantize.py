"""`loire quantize`: a model in fewer bits per weight."""

import argparse
import json
from pathlib import Path

from loire.base.errors import ConfigError
from loire.cli.options import DEFAULT_MODEL, MODEL_HELP

OWN_TEXTS = 48
"""That the model writes where no text is given: the one that comes with Loire has a tenth of that,
and codes that make up for errors on so little do no better on other text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    parser.add_argument(
        "--bits",
        type=float,
        default=3.5,
        help="per weight, on average over all matrices, scales included: 2.25 to 8.5 [3.5]",
    )
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="DIR",
        help="where it is written: a directory, or a file whose name ends in .gguf",
    )
    parser.add_argument(
        "--format",
        choices=("safetensors", "gguf"),
        help="gguf: a file of GGUF's standard types, which llama.cpp runs too; of models that came "
        "as one, and of dense Llama, Qwen2, Qwen3 and Gemma 3 [by --out]",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="text like what the model will read, of which the beginning counts, 64 texts of 256 "
        "tokens [a small one that comes with Loire]",
    )
    parser.add_argument(
        "--own-texts",
        type=int,
        metavar="N",
        help="calibrate on so many texts of 256 tokens, too, that the model writes itself [48; 0 "
        "with --calibration]",
    )
    parser.add_argument("--num-threads", type=int, help="[all cores]")
    parser.add_argument("--json", action="store_true", help="only JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    if args.num_threads is not None and args.num_threads < 1:
        raise ConfigError(f"num_threads must be at least 1, but is {args.num_threads}")
    num_own = args.own_texts
    if num_own is None:
        num_own = 0 if args.calibration else OWN_TEXTS
    if num_own < 0:
        raise ConfigError(f"own_texts must be at least 0, but are {num_own}")
    import torch

    from loire.adapt.texts import own_texts
    from loire.base.machine import usable_cores
    from loire.checkpoint.open import open_checkpoint
    from loire.checkpoint.store import loire_home, resolve_model
    from loire.cli.progress import ProgressBars
    from loire.quantize.calibration import read_text
    from loire.quantize.run import FileFormat, quantize
    from loire.text.tokenizer import checkpoint_tokenizer

    text = read_text(args.calibration)
    by_name: FileFormat = "gguf" if args.out.lower().endswith(".gguf") else "safetensors"
    checkpoint = open_checkpoint(resolve_model(args.model))
    torch.set_num_threads(args.num_threads or usable_cores())
    with ProgressBars(times="remaining", quiet=args.json) as bars:
        report = quantize(
            checkpoint,
            checkpoint_tokenizer(checkpoint),
            text,
            Path(args.out),
            args.bits,
            bars.update,
            args.format or by_name,
            kept=loire_home() / "measured",
            num_own=num_own,
            write=lambda count: own_texts(
                checkpoint, text, count, lambda share: bars.update("writing", share)
            ),
        )
    counts: dict[str, int] = {}
    for name in report.formats.values():
        counts[name] = counts.get(name, 0) + 1
    if args.json:
        summary = {"model": args.model, "out": args.out, "formats": counts}
        print(json.dumps(report.summary() | summary))
        return 0
    parts = ", ".join(f"{count} in {name}" for name, count in sorted(counts.items()))
    print(
        f"{args.out}: {report.num_bytes / 1e6:,.1f} MB, {report.bits:.2f} bits per weight "
        f"({parts})\nperplexity of text that was not calibrated on: "
        f"{report.perplexity_before:.2f} before, {report.perplexity_after:.2f} now\n"
        f'try it: loire run -m {args.out} "..."'
    )
    return 0
