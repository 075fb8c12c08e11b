"""Serve the OpenAI API over HTTP."""

import argparse
from pathlib import Path

from loire.base.signals import end_at_once
from loire.cli.access_options import access_options, add_access_options, tls_files
from loire.cli.limit_options import add_limit_options, server_limits
from loire.cli.log_options import add_log_options, log_options
from loire.cli.lora_options import add_lora_options
from loire.cli.options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    add_default_sampling_options,
    add_engine_options,
    default_sampling,
    engine_options,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire serve`."""
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="address to bind [127.0.0.1]")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one [8000]")
    parser.add_argument(
        "--served-model-name", action="append", help="name in the API (repeatable) [the model's]"
    )
    parser.add_argument(
        "--replicas",
        type=parse_replicas,
        metavar="ray[:N[:MAX]]",
        help="engines that Ray Serve keeps, in the cluster of RAY_ADDRESS or one started here; "
        "needs loire[ray] [one engine here]",
    )
    parser.add_argument(
        "--replica-timeout",
        type=float,
        metavar="SECONDS",
        help="one that gives no sign of life for that long is left, and its requests go on "
        "elsewhere [5]",
    )
    parser.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="/metrics there as well, without a key"
    )
    parser.add_argument(
        "--data-dir", type=Path, help="folder for files and batches [data in LOIRE_HOME]"
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="a system message for conversations that have none"
    )
    add_access_options(parser)
    add_limit_options(parser)
    add_log_options(parser)
    add_lora_options(parser)
    add_default_sampling_options(parser)
    add_engine_options(parser)


def parse_replicas(text: str) -> tuple[int, int | None]:
    """(replicas, most replicas) of `ray`, `ray:4` or `ray:2:8`, as an argparse type."""
    kind, *counts = text.split(":")
    valid = kind == "ray" and len(counts) <= 2 and all(c.isdecimal() for c in counts)
    numbers = [int(c) for c in counts] if valid else []
    if not valid or any(n < 1 for n in numbers) or sorted(numbers) != numbers:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of `ray`, `ray:4` (so many) and `ray:2:8` (from 2 to 8, by what "
            f"waits)"
        )
    return (numbers or [1])[0], numbers[1] if len(numbers) == 2 else None


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    # Until there is a server, and once it has ended.
    with end_at_once():
        return _serve(args)


def _serve(args: argparse.Namespace) -> int:
    from loire.base.config import EngineOptions
    from loire.base.errors import ConfigError
    from loire.base.long_lived import long_lived
    from loire.engine.process import launch
    from loire.server.host.settings import ServerSettings

    if args.replica_timeout is not None and args.replicas is None:
        raise ConfigError("--replica-timeout goes with --replicas: there is one engine here")
    settings = ServerSettings(
        model=args.model,
        names=args.served_model_name or (args.model,),
        options=EngineOptions(
            **engine_options(args),
            override_generation_config=default_sampling(args),
            system=args.system or "",
        ),
        access=access_options(args),
        tls=tls_files(args),
        limits=server_limits(args),
        log=log_options(args),
        replicas=args.replicas,
        replica_timeout_s=args.replica_timeout,
        metrics_port=args.metrics_port,
        data_dir=args.data_dir,
        lora_modules=tuple(args.lora_modules),
        lora_root=args.lora_root,
    )
    # Both sides import for a second or two: side by side.
    launched = launch() if settings.replicas is None else None
    try:
        with long_lived():
            from loire.server.host.run import serve

        return serve(settings, host=args.host, port=args.port, launched=launched)
    finally:
        if launched is not None:
            launched.abandon()
