"""`loire adapt`: an adapter that repairs what quantizing cost."""

import argparse
import json
from pathlib import Path

from loire.adapt.training import DEFAULT_TRAINING, TEXTS, Training
from loire.base.errors import ConfigError
from loire.checkpoint.adapter_settings import MOST_RANK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("model", help="the quantized one, as any model is named")
    parser.add_argument(
        "--original",
        required=True,
        metavar="MODEL",
        help="what it was made from: the adapter learns to say what this says",
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="where it is written")
    usual = DEFAULT_TRAINING
    parser.add_argument(
        "--rank",
        type=int,
        default=usual.rank,
        help=f"of the adapter, 1 to {MOST_RANK} [{usual.rank}]",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="text to train on [texts of many kinds that the original writes itself]",
    )
    parser.add_argument(
        "--texts",
        type=int,
        default=TEXTS,
        metavar="N",
        help=f"most texts to train on, of 256 tokens each [{TEXTS}]",
    )
    parser.add_argument(
        "--passes", type=int, default=usual.passes, help=f"over all texts [{usual.passes}]"
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=usual.learning_rate,
        metavar="X",
        help=f"[{usual.learning_rate}]",
    )
    parser.add_argument("--num-threads", type=int, help="[all cores]")
    parser.add_argument("--json", action="store_true", help="only JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    if args.num_threads is not None and args.num_threads < 1:
        raise ConfigError(f"num_threads must be at least 1, but is {args.num_threads}")
    if args.texts < 1:
        raise ConfigError(f"texts must be at least 1, but are {args.texts}")
    import torch

    from loire.adapt.run import adapt
    from loire.base.machine import usable_cores
    from loire.checkpoint.open import open_checkpoint
    from loire.checkpoint.store import resolve_model
    from loire.cli.progress import ProgressBars

    training = Training(rank=args.rank, passes=args.passes, learning_rate=args.learning_rate)
    out = Path(args.out)
    quantized = open_checkpoint(resolve_model(args.model))
    original = open_checkpoint(resolve_model(args.original))
    torch.set_num_threads(args.num_threads or usable_cores())
    with ProgressBars(times="remaining", quiet=args.json) as bars:
        report = adapt(
            quantized,
            original,
            out,
            training,
            text=None if args.calibration is None else Path(args.calibration),
            num_texts=args.texts,
            progress=bars.update,
        )
    if args.json:
        print(json.dumps({"model": args.model, "out": args.out, **report.as_dict()}))
        return 0
    print(
        f"{args.out}: rank {report.rank}, {report.num_bytes / 1e6:,.1f} MB\n"
        f"loss of text that was not trained on, nats per token: {report.nats_original:.3f} before "
        f"quantizing, {report.nats_before:.3f} after it, {report.nats_after:.3f} with the adapter: "
        f"{report.repaired:.0%} of what was lost\n"
        f"divergence from the original: {report.divergence_before:.3f} nats per token without, "
        f"{report.divergence_after:.3f} with it\n"
        f"try it: loire serve {args.model} --lora-modules repaired={args.out}"
    )
    return 0
