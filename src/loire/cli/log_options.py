"""Flags of `loire serve` about its log."""

import argparse
from pathlib import Path

from loire.server.host.logs import LogOptions


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    group = parser.add_argument_group("log")
    group.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="of the lines on stderr"
    )
    group.add_argument(
        "--log-prompts", action="store_true", help="log what is asked, which is otherwise kept out"
    )
    group.add_argument(
        "--otel",
        action="store_true",
        help="send spans to OpenTelemetry, as the variables OTEL_... say",
    )
    group.add_argument(
        "--audit-log",
        type=Path,
        metavar="FILE",
        help="note who called what and when, without texts: a JSON object a line",
    )


def log_options(args: argparse.Namespace) -> LogOptions:
    """Settings from the flags that were given."""
    return LogOptions(
        format=args.log_format,
        prompts=args.log_prompts,
        spans=args.otel,
        audit_file=args.audit_log,
    )
