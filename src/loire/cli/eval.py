"""How good a model is, as loaded with the given options."""

import argparse
import json
import sys
import time
from pathlib import Path

from loire.base.errors import ConfigError
from loire.base.lora import LoRARequest
from loire.base.units import parse_tokens
from loire.cli.loading import load_llm
from loire.cli.options import MODEL_HELP, add_engine_options, argument_type, engine_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire eval`."""
    measures = parser.add_subparsers(dest="measure", metavar="MEASURE", required=True)
    perplexity = measures.add_parser(
        "perplexity", help="of a text; comparable with llama.cpp's of the same file"
    )
    perplexity.usage = f"{perplexity.prog} [OPTION ...] model text"
    perplexity.add_argument("model", help=MODEL_HELP.partition(" [")[0])
    perplexity.add_argument("text", help="a file of text, or - for standard input")
    tokens = argument_type(parse_tokens)
    perplexity.add_argument(
        "--context",
        type=tokens,
        default=512,
        help="tokens of a chunk; its second half counts [512]",
    )
    perplexity.add_argument(
        "--stride", type=tokens, default=0, help="chunks begin so many tokens apart [--context]"
    )
    perplexity.add_argument("--chunks", type=int, metavar="N", help="only the first N chunks [all]")
    perplexity.add_argument(
        "--lora", type=Path, metavar="DIR", help="an adapter in PEFT's format to measure with"
    )
    perplexity.add_argument("--json", action="store_true", help="only JSON on stdout")
    add_engine_options(perplexity, without=("--max-model-len",))


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    from loire.cli.progress import ProgressBars
    from loire.workloads.perplexity import Perplexity, chunk_losses, chunk_size

    if args.chunks is not None and args.chunks < 1:
        raise ConfigError(f"chunks must be at least 1, not {args.chunks}")
    text = _text(args.text)
    options = {**engine_options(args), "max_model_len": chunk_size(args.context, args.stride) + 1}
    with load_llm(args.model, options, quiet=args.json) as llm:
        started = time.perf_counter()
        with ProgressBars(times="remaining", quiet=args.json) as bars:
            losses = chunk_losses(
                llm,
                text,
                context=args.context,
                stride=args.stride,
                most_chunks=args.chunks,
                lora_request=None if args.lora is None else LoRARequest("", 1, str(args.lora)),
                progress=lambda share: bars.update("perplexity", share),
            )
        seconds = time.perf_counter() - started
        found = Perplexity.of(losses)
        summary = {
            "model": args.model,
            "lora": None if args.lora is None else str(args.lora),
            "text": args.text,
            "dtype": llm.config.dtype,
            "quantization": options.get("quantization", "auto"),
            "kernels": llm.engine.kernels,
            "bytes_per_step": llm.engine.bytes_per_step,
            "context": args.context,
            "stride": args.stride,
            **found.as_dict(),
            "seconds": seconds,
        }
    if args.json:
        print(json.dumps(summary))
        return 0
    print(
        f"perplexity {found.perplexity:.4f} +/- {found.perplexity * found.uncertainty:.4f}  "
        f"({found.nats_per_token:.5f} nats per token, {found.tokens:,} tokens in {found.chunks:,} "
        f"chunks of {chunk_size(args.context, args.stride):,}, {seconds:.1f} s)"
    )
    return 0


def _text(name: str) -> str:
    """The text of a file, without the line break at its end, as llama.cpp reads it."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} cannot be read: {error}") from error
    return text.removesuffix("\n")
