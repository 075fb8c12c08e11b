"""What fits into a memory, and how fast it can be."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from loire.base.errors import ConfigError, ModelNotFoundError
from loire.base.units import parse_bytes, parse_count, parse_tokens
from loire.cli.options import DEFAULT_MODEL, MODEL_HELP, argument_type

if TYPE_CHECKING:
    from loire.checkpoint.checkpoint import Checkpoint
    from loire.planning.capacity import CapacityPlan
    from loire.planning.choices import Question, Variant
    from loire.planning.devices import Device

T = TypeVar("T")
_EPILOG = """\
With --what-if, the flags marked * take several values, separated by commas; without any such
list, the usual windows and weight formats are shown. Speeds are limits: nothing can be faster.
What many replicas do with real traffic, `loire simulate` tells.

  loire plan
  loire plan --params 13B --dtype fp16 --kv-per-token 1MB --device h100-80gb --window 8k
  loire plan --params 30B --active 3B --quantization q4_k --kv-per-token 98kB --device l4
  loire plan smollm2 --what-if --device l4,a100-80gb --window 2k,8k
  loire plan smollm2 --bits 3.5 --lora 15x16
  loire plan llama-3-8b --device h100-80gb

The last names a model that need not be here: shapes of some published ones are known.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire plan`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add = parser.add_argument
    size, tokens = argument_type(parse_bytes), argument_type(parse_tokens)
    add("model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    add("--params", type=argument_type(parse_count), help="instead of MODEL: parameters, as 13B")
    active = "with --params: of experts, what a token uses, as 3B [all]"
    add("--active", type=argument_type(parse_count), metavar="PARAMS", help=active)
    add("--kv-per-token", type=size, metavar="SIZE", help="with --params: KV of a token, as 1MB")
    add("--device", type=_names, help="* a known device, or this machine [this]")
    add("--memory", type=size, metavar="SIZE", help="of the device, as 80GB")
    add("--bandwidth", type=_bandwidth, help="of its memory, as 3.35TB/s")
    add("--flops", type=_flops, help="dense matrix throughput, as 989T")
    add("--dtype", type=_names, help="* bfloat16, float16 or float32 [bfloat16]")
    formats = "* of the matrices: auto as in the file, none, int8, int4, q8_0, q4_0, ... [auto]"
    add("--quantization", type=_names, metavar="FORMAT", help=formats)
    add("--bits", type=_bits, help="per weight, as of `loire quantize --bits`")
    lora = "adapters and their rank, for all linear layers but experts': as 15x16"
    add("--lora", type=_lora, metavar="NxRANK", help=lora)
    experts = "--lora counts adapters of every expert, too"
    add("--lora-experts", action="store_true", help=experts)
    add("--kv-dtype", type=_names, help="* of the KV cache [as --dtype]")
    ranks = "* devices, or processes on a machine, that share the model [1]"
    add("--tensor-parallel-size", type=_list_of(_positive), metavar="N", help=ranks)
    add("--window", type=_list_of(tokens), metavar="TOKENS", help="* as 8k [the model's]")
    add("--prompt", type=tokens, metavar="TOKENS", help="length of a prompt [the window]")
    add("--output", type=tokens, metavar="TOKENS", help="length of an output [0]")
    for flag, parse, default, what in (
        ("--max-num-batched-tokens", tokens, 2048, "token budget of a step"),
        ("--max-num-seqs", _positive, 128, "most sequences in a step"),
    ):
        reserve = f"{what}, for the activation reserve [{default}]"
        add(flag, type=parse, default=default, metavar="N", help=reserve)
    reserve = "per device, instead of the formula [0 with --params]"
    add("--activation-reserve", type=size, metavar="SIZE", help=reserve)
    add("--measure", action="store_true", help="measure this machine first, and remember it")
    add("--what-if", action="store_true", help="several plans side by side")
    add("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status, 1 if the model does not fit."""
    from loire.planning.choices import answer, usual_variations

    if args.measure:
        _measure()
    question = _question(args)
    choices = _choices(args)
    if not args.what_if:
        if len(choices) > 1:
            raise ConfigError("several values of a flag make several plans: add --what-if")
        return _show_one(question, choices[0], as_json=args.json)
    if len(choices) == 1:
        choices = usual_variations(question, choices[0])
    _show_several([(choice, answer(question, choice)) for choice in choices], as_json=args.json)
    return 0


def _measure() -> None:
    """Measure what this machine can do, for this plan and later ones."""
    from loire.checkpoint.store import loire_home
    from loire.planning.this_machine import MEASUREMENT_FILE, save_measurement
    from loire.workloads.measure import measure_machine

    machine = measure_machine()
    save_measurement(loire_home() / MEASUREMENT_FILE, machine)
    print(
        f"measured: {machine.bandwidth_bytes_per_s / 1e9:.1f} GB/s, "
        f"{machine.flops / 1e9:.1f} GFLOP/s (bfloat16)",
        file=sys.stderr,
    )


def _show_one(question: "Question", choice: "Variant", *, as_json: bool) -> int:
    from loire.planning.choices import answer, remedies
    from loire.planning.rendering import render, to_json

    plan = answer(question, choice)
    if as_json:
        _print_json(to_json(plan, choice))
    else:
        print(render(plan, choice, color=_color(), unicode=_unicode()))
    if plan.fits:
        return 0
    needed = plan.kv_held_bytes(plan.load.peak_tokens)
    left = max(plan.kv_memory_bytes, 0)
    helping = remedies(question, choice)
    print(
        f"loire plan: a request of {plan.load.peak_tokens:,} tokens needs {needed / 1e9:,.3f} GB "
        f"of KV, but weights and activations leave {left / 1e9:,.3f} GB of "
        f"{plan.memory_bytes / 1e9:,.1f} GB; what helps: "
        f"{' or '.join(helping) or 'more memory, a smaller model or a shorter --window'}",
        file=sys.stderr,
    )
    return 1


def _show_several(plans: "list[tuple[Variant, CapacityPlan]]", *, as_json: bool) -> None:
    from loire.planning.rendering import render_side_by_side, to_json

    if as_json:
        _print_json({"plans": [to_json(plan, choice) for choice, plan in plans]})
        return
    print(plans[0][1].model.name)
    print(render_side_by_side(plans))


def _print_json(value: dict[str, object]) -> None:
    import json

    print(json.dumps(value))


def _color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


# --- what the flags say ---------------------------------------------------------------------


def _question(args: argparse.Namespace) -> "Question":
    from loire.planning.adapter_size import Adapters
    from loire.planning.choices import Question, Shapes

    model: Checkpoint | Shapes
    if args.params is None:
        if args.kv_per_token is not None:
            raise ConfigError("--kv-per-token belongs to --params: a MODEL has its own")
        if args.active is not None:
            raise ConfigError("--active belongs to --params: a MODEL has its own")
        name = args.model or DEFAULT_MODEL
        model = _model(name)
    else:
        if args.model is not None:
            raise ConfigError(f"give either the model {args.model!r} or --params, not both")
        if args.kv_per_token is None:
            raise ConfigError("--params needs --kv-per-token, such as 1MB: KV bytes of one token")
        name = ""
        model = Shapes(
            num_parameters=args.params,
            kv_bytes_per_token=args.kv_per_token,
            active_parameters=args.active,
        )
    adapters = None
    if args.lora is not None:
        count, rank = args.lora
        adapters = Adapters(count, rank, of_experts=args.lora_experts)
    return Question(
        model=model,
        model_name=name,
        prompt=args.prompt,
        output=args.output,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_seqs=args.max_num_seqs,
        activation_bytes=args.activation_reserve,
        adapters=adapters,
    )


def _model(name: str) -> "Checkpoint":
    """A model that is here, or one whose shapes are known."""
    from loire.checkpoint.open import open_checkpoint
    from loire.checkpoint.store import resolve_model
    from loire.planning.published_models import PUBLISHED, published_model

    known = name.lower()
    if known in PUBLISHED and not Path(name).exists():
        return published_model(known)
    try:
        return open_checkpoint(resolve_model(name, allow_download=False))
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{error}\nWithout its files, a plan knows {', '.join(PUBLISHED)}"
        ) from error


def _choices(args: argparse.Namespace) -> "list[Variant]":
    """Every combination of the values given."""
    from loire.planning.choices import Variant
    from loire.planning.held_bytes import DTYPES, QUANTIZATIONS, ROUNDED
    from loire.planning.model_size import DTYPE_ALIASES, KV_DTYPES

    def known(flag: str, name: str, names: tuple[str, ...]) -> str:
        full = DTYPE_ALIASES.get(name, name)
        if full not in names:
            raise ConfigError(f"--{flag} {name!r} is not known; it can be {', '.join(names)}")
        return full

    weight_formats = ("auto", "none", *ROUNDED, *QUANTIZATIONS)
    if args.bits is not None and args.quantization is not None:
        raise ConfigError("give either --bits or --quantization, not both")
    dtypes = [known("dtype", name, tuple(DTYPES)) for name in args.dtype or ["bfloat16"]]
    formats = [known("quantization", n, weight_formats) for n in args.quantization or ["auto"]]
    kv_dtypes: list[str | None] = [None]
    if args.kv_dtype is not None:
        kv_dtypes = [known("kv-dtype", name, KV_DTYPES) for name in args.kv_dtype]
    return [
        Variant(
            device=_for_dtype(device, dtype, args.flops),
            dtype=dtype,
            quantization=None if quantization == "auto" else quantization,
            bits=args.bits,
            kv_dtype=kv_dtype,
            tensor_parallel=tensor_parallel,
            window=window,
        )
        for device, dtype, quantization, kv_dtype, tensor_parallel, window in product(
            _devices(args),
            dtypes,
            formats,
            kv_dtypes,
            args.tensor_parallel_size or [1],
            args.window or [None],
        )
    ]


def _devices(args: argparse.Namespace) -> "list[Device]":
    """The devices named, with the figures that were given instead of their own."""
    from loire.planning.devices import Device, find_device
    from loire.planning.this_machine import MEASUREMENT_FILE, this_machine

    if args.device is None and args.memory is not None:
        label = f"a device of {args.memory / 1e9:g} GB"
        found = [
            Device(
                name="custom",
                label=label,
                memory_bytes=args.memory,
                bandwidth_bytes_per_s=None,
                flops=None,
                source="given",
            )
        ]
    else:
        found = []
        for name in args.device or ["this"]:
            if name == "this":
                from loire.checkpoint.store import loire_home

                found.append(this_machine(loire_home() / MEASUREMENT_FILE))
            else:
                found.append(find_device(name))
    given = {
        "memory_bytes": args.memory,
        "bandwidth_bytes_per_s": args.bandwidth,
        "flops": args.flops,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    return [replace(device, **changes) for device in found] if changes else found


def _for_dtype(device: "Device", dtype: str, given_flops: float | None) -> "Device":
    """The table's throughput is that of 16-bit floats; for float32 only a given one holds."""
    if dtype == "float32" and given_flops is None:
        return replace(device, flops=None)
    return device


def _list_of(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values separated by commas, as an argparse type."""

    def convert(text: str) -> list[T]:
        return [parse(part) for part in text.split(",")]

    return convert


def _names(text: str) -> list[str]:
    return [part.strip().lower() for part in text.split(",")]


def _bits(text: str) -> float:
    try:
        bits = float(text)
    except ValueError:
        bits = 0.0
    if not 2 <= bits <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bits between 2 and 16")
    return bits


def _lora(text: str) -> tuple[int, int]:
    count, separator, rank = text.partition("x")
    numbers = count.isdecimal() and rank.isdecimal()
    if not separator or not numbers or int(count) < 1 or not 1 <= int(rank) <= 512:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of adapters and a rank up to 512, such as 15x16"
        )
    return int(count), int(rank)


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _bandwidth(text: str) -> int:
    return _above_zero(text, parse_bytes, text.removesuffix("/s"))


def _flops(text: str) -> int:
    plain = text.lower().removesuffix("/s").removesuffix("s").removesuffix("flop")
    return _above_zero(text, parse_count, plain)


def _above_zero(text: str, parse: Callable[[str], int], plain: str) -> int:
    value = argument_type(parse)(plain)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value
