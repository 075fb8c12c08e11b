"""Flags of `loire serve` for adapters."""

import argparse
import json
from pathlib import Path

from loire.base.lora import MOST_ADAPTERS, LoRAModule
from loire.base.units import parse_bytes
from loire.cli.options import argument_type


def add_lora_options(parser: argparse.ArgumentParser) -> None:
    """Which adapters are served."""
    group = parser.add_argument_group("LoRA adapters")
    group.add_argument(
        "--lora-modules",
        nargs="+",
        type=parse_module,
        default=[],
        metavar="NAME=PATH",
        help='adapters in PEFT\'s format to serve as models of these names; or JSON, {"name": ..., '
        '"path": ..., "pinned": true}',
    )
    group.add_argument(
        "--lora-root",
        type=Path,
        metavar="DIR",
        help="adapters below this folder may be loaded while the server runs, with an admin key: "
        "`loire adapters`, POST /v1/load_lora_adapter [none]",
    )
    group.add_argument(
        "--lora-memory",
        dest="lora_memory_bytes",
        type=argument_type(parse_bytes),
        metavar="SIZE",
        help="of the weights of adapters; those that nobody uses make room for others [1GiB]",
    )
    group.add_argument(
        "--max-cpu-loras", type=count, metavar="N", help="the same as a number [only bytes count]"
    )
    group.add_argument(
        "--max-lora-rank", type=int, metavar="R", help="adapters of a larger rank are refused [512]"
    )
    group.add_argument(
        "--max-loras",
        type=count,
        metavar="N",
        help="checked and no more: nothing bounds the adapters of a step [no bound]",
    )
    group.add_argument(
        "--enable-lora",
        action=argparse.BooleanOptionalAction,
        help="whether there may be adapters at all [yes]",
    )


def count(text: str) -> int:
    """A number of adapters, as an argparse type."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_ADAPTERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 and {MOST_ADAPTERS}")
    return int(text)


def parse_module(text: str) -> LoRAModule:
    """NAME=PATH, or a JSON object, as an argparse type."""
    if not text.startswith("{"):
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
        return LoRAModule(name, Path(path))
    try:
        values = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error
    # (base_model_name is vLLM's; the model that is served is the base.)
    unknown = set(values) - {"name", "path", "pinned", "base_model_name"}
    name, path, pinned = values.get("name"), values.get("path"), values.get("pinned", False)
    are_texts = isinstance(name, str) and isinstance(path, str)
    if unknown or not are_texts or not name or not path or not isinstance(pinned, bool):
        raise argparse.ArgumentTypeError(
            f"{text!r} should be an object with name and path, and perhaps pinned (true or false)"
        )
    return LoRAModule(name, Path(path), pinned)
