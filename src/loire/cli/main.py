"""Entry point of `loire`: finds the verb and imports only its module."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from loire import __version__

VERBS: dict[str, str] = {
    "run": "answer one prompt, streamed to the terminal",
    "chat": "talk with a model in the terminal",
    "serve": "serve the OpenAI API over HTTP",
    "deploy": "write the file with which Ray Serve keeps replicas of a model",
    "pull": "fetch a model into the local store",
    "models": "list the models of the store",
    "plan": "what fits into a memory, and how fast it can be",
    "simulate": "what a trace of traffic would meet in a fleet of replicas",
    "compare": "run a load through the batching policies, one after another",
    "trace": "draw the batch, slot by slot and step by step",
    "bench": "run loads against the limits of this machine",
    "env": "versions, CPU features and which kernels are active",
}
"""Verb -> one line of help; the verb's module is loire.cli.<verb>."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status. 2 is a mistake of usage, 1 a failure, 130 Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(arguments[0] if arguments else "")
    args = parser.parse_args(arguments)
    if args.verb is None:
        parser.print_help()
        return 2
    from loire.base.errors import LoireError

    try:
        return int(import_module(f"loire.cli.{args.verb}").run(args))
    except LoireError as error:
        print(f"loire {args.verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


def _parser(verb: str) -> argparse.ArgumentParser:
    """The parser, with the arguments of the one verb that is used."""
    parser = argparse.ArgumentParser(
        prog="loire", description="An LLM inference and serving engine."
    )
    parser.add_argument("--version", action="version", version=f"loire {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, summary in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:])
        if name == verb:
            import_module(f"loire.cli.{name}").add_arguments(sub)
    return parser
