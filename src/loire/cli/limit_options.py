"""Flags of `loire serve` about how much is taken on, and how long it may take."""

import argparse
from dataclasses import fields

from loire.base.units import parse_tokens
from loire.cli.options import argument_type
from loire.server.access.limits import ServerLimits


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """The flags. None of them has a default of its own: ServerLimits has."""
    group = parser.add_argument_group("limits (docs/reliability.md)")
    group.add_argument(
        "--max-queued-requests",
        type=int,
        metavar="N",
        help="requests that may wait, n sequences as n; more are refused with 429 [2048]",
    )
    group.add_argument(
        "--max-queued-tokens",
        type=argument_type(parse_tokens),
        metavar="N",
        help="prompt tokens that may wait; then requests are refused with 429 [4M]",
    )
    group.add_argument(
        "--request-timeout",
        dest="request_timeout_s",
        type=float,
        metavar="SECONDS",
        help="life of a request, waiting included [no limit]",
    )
    group.add_argument(
        "--grace-period",
        dest="grace_period_s",
        type=float,
        metavar="SECONDS",
        help="for running requests when the server is told to stop [30]",
    )
    group.add_argument(
        "--keep-alive",
        dest="keep_alive_s",
        type=float,
        metavar="SECONDS",
        help="a stream that has nothing to send sends a comment or ping that often [10]",
    )
    group.add_argument(
        "--idle-connection",
        dest="idle_connection_s",
        type=int,
        metavar="SECONDS",
        help="a connection is kept that long between requests [120]",
    )
    group.add_argument(
        "--max-connections",
        type=int,
        metavar="N",
        help="connections at a time [what the limit on open files leaves]",
    )
    group.add_argument(
        "--step-timeout",
        dest="step_timeout_s",
        type=float,
        metavar="SECONDS",
        help="an engine that needs longer for a step, and 0.1 s more per token, is replaced [60]",
    )


def server_limits(args: argparse.Namespace) -> ServerLimits:
    """Limits from the flags that were given. Raises ConfigError if one cannot work."""
    names = [field.name for field in fields(ServerLimits)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return ServerLimits(**given)
