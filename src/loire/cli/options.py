"""Flags that several verbs share. They are the words of EngineOptions and SamplingParams."""

import argparse
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from loire.base.config import BLOCK_SIZES, EngineOptions
from loire.base.errors import ConfigError
from loire.base.kv_events import KVEvents, parse_kv_events
from loire.base.sampling import NEUTRAL, SamplingParams
from loire.base.units import parse_bytes, parse_tokens

DEFAULT_MODEL = "smollm2"
MODEL_HELP = (
    "a name of the store (see `loire models`), a directory, a GGUF file or a hub id "
    f"[default: {DEFAULT_MODEL}]"
)


def argument_type(parse: Callable[[str], int]) -> Callable[[str], int]:
    """A parser of loire.base.units as an argparse type, with its own error message."""

    def convert(text: str) -> int:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def template_file(name: str) -> str:
    """The text of a file, as an argparse type."""
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{name} cannot be read: {error}") from error
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{name} is empty")
    return text


def _kv_events(text: str) -> KVEvents | None:
    try:
        return parse_kv_events(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_engine_options(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """The engine's flags. None of them has a default of its own: EngineOptions has.

    without: flags that a verb decides by itself.
    """
    group = parser.add_argument_group("engine")
    tokens = argument_type(parse_tokens)

    def add(flag: str, **how: Any) -> None:
        if flag not in without:
            group.add_argument(flag, **how)

    add("--dtype", choices=("auto", "bfloat16", "float16", "float32"), help="[auto: bfloat16]")
    add("--kv-cache-dtype", choices=("auto", "int8"), help="of keys and values [auto: --dtype]")
    add("--device", help="a torch device such as cpu or cuda:0 [auto]")
    add("--max-model-len", type=tokens, help="window of a request in tokens [the model's]")
    add("--max-num-seqs", type=int, help="most sequences in a step [128]")
    add("--max-num-batched-tokens", type=tokens, help="token budget of a step [2048]")
    add("--block-size", type=int, choices=BLOCK_SIZES, help="tokens per KV block [16]")
    add(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        help="reuse the KV blocks of equal prefixes [on under policy paged]",
    )
    add(
        "--kv-cache-memory",
        dest="kv_cache_memory_bytes",
        type=argument_type(parse_bytes),
        metavar="SIZE",
        help="size of the KV pool, such as 2GB [half of what weights and a step leave]",
    )
    add("--policy", choices=("sequential", "static", "orca", "paged"), help="[paged]")
    add("--reserve", choices=("max-tokens", "window"), help="what orca and static reserve")
    add(
        "--quantization",
        choices=("auto", "none", "int8", "int4"),
        help="auto keeps what the file has, none expands quantized weights, int8 and int4 round "
        "those of 16 or 32 bits while loading [auto]",
    )
    add("--kernels", help="a backend listed by `loire env` [auto]")
    add("--num-threads", type=int, help="threads of the CPU kernels, in each process [all cores]")
    add(
        "--tensor-parallel-size",
        type=int,
        metavar="N",
        help="processes that share the model's weights and compute together [1]",
    )
    add(
        "--sum-chunks",
        type=int,
        metavar="N",
        help="take the sums that these divide in so many chunks, for equal bits with any number of "
        "them [8 with several, else none]",
    )
    add("--pipeline-depth", type=int, choices=(1, 2), help="2 schedules ahead by one step [1]")
    add(
        "--generation-config",
        choices=("auto", "none"),
        help="none: do not sample as the model's makers recommend where nothing is said [auto]",
    )
    add(
        "--allow-special-in-text",
        action="store_true",
        default=None,
        help="control tokens written in a conversation count as such",
    )
    add(
        "--chat-template",
        metavar="FILE",
        type=template_file,
        help="a Jinja template in place of the model's own",
    )
    add(
        "--kv-events-config",
        dest="kv_events",
        metavar="JSON",
        type=_kv_events,
        help="publish which KV blocks can be found, for routers; as vLLM's (docs/deploy.md)",
    )
    add("--engine-seed", dest="engine_seed", type=int, help="makes unseeded requests repeatable")


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of LLM from the flags that were given."""
    # --system is the first message of `run` and `chat`; `serve` says it to the engine.
    names = {field.name for field in fields(EngineOptions)} - {"seed", "system"}
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if getattr(args, "engine_seed", None) is not None:
        given["seed"] = args.engine_seed
    return given


def _add_truncation_options(group: argparse._ArgumentGroup, defaults: dict[str, Any]) -> None:
    """The sampling flags that a model's makers may recommend values for."""
    for flag, kind, what in (
        ("--temperature", float, "0 takes the likeliest token"),
        ("--top-k", int, "keep the k likeliest tokens"),
        ("--top-p", float, "keep the likeliest tokens that reach this probability"),
        ("--min-p", float, "keep tokens at least this likely, relative to the likeliest"),
        ("--repetition-penalty", float, "above 1 discourages tokens that occurred"),
    ):
        default = defaults.get(flag.removeprefix("--").replace("-", "_"))
        shown = "[as the model's makers recommend]" if default is None else f"[{default}]"
        group.add_argument(flag, type=kind, help=f"{what} {shown}", default=default)


def add_default_sampling_options(parser: argparse.ArgumentParser) -> None:
    """The same flags, for requests to a server that say nothing of them."""
    title = "sampling, of requests that say nothing of it"
    _add_truncation_options(parser.add_argument_group(title), {})


def default_sampling(args: argparse.Namespace) -> dict[str, float]:
    """What those flags say. Raises RequestError for values out of range."""
    given = {name: getattr(args, name) for name in NEUTRAL if getattr(args, name) is not None}
    SamplingParams(**given)
    return given


def add_sampling_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """The sampling flags, with a verb's own defaults."""
    group = parser.add_argument_group("sampling")

    def add(name: str, type_: Callable[[str], Any], help_: str, **more: Any) -> None:
        key = name.removeprefix("--").replace("-", "_")
        default = defaults.get(key)
        shown = "" if default is None else f" [{default}]"
        group.add_argument(name, type=type_, help=help_ + shown, default=default, **more)

    add("--max-tokens", int, "most tokens to generate [as many as fit]")
    _add_truncation_options(group, defaults)
    add("--frequency-penalty", float, "subtracted per occurrence in the output")
    add("--presence-penalty", float, "subtracted once for tokens in the output")
    add("--min-tokens", int, "no end before that many tokens")
    add("--seed", int, "makes sampling repeatable")
    add("--stop", str, "a string that ends the output (repeatable)", action="append")
    group.add_argument(
        "--ignore-eos", action="store_true", default=None, help="go on past the model's own end"
    )


def sampling_params(args: argparse.Namespace, **more: Any) -> SamplingParams:
    """SamplingParams from the flags that were given; without --max-tokens, as many as fit.

    Raises RequestError for values out of range.
    """
    names = {field.name for field in fields(SamplingParams)} & set(vars(args))
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return SamplingParams(**{"max_tokens": None, **given, **more})
