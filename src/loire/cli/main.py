"""Entry point of `loire`: finds the verb and imports only its module."""

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from loire import __version__

VERBS: dict[str, str] = {
    "run": "answer one prompt, streamed to the terminal",
    "chat": "talk with a model in the terminal",
    "serve": "serve the APIs of OpenAI and Anthropic over HTTP",
    "launch": "start a coding agent (codex, claude, opencode, aider) over a model of your own",
    "keys": "add, revoke and list the API keys of a file",
    "adapters": "list, load and unload the LoRA adapters of a server that runs",
    "deploy": "write the file with which Ray Serve keeps replicas of a model",
    "pull": "fetch a model into the local store",
    "models": "list the models that are on this machine, and those that can be fetched",
    "show": "what a model is: its family, sizes, window, template and sampling",
    "plan": "what fits into a memory, and how fast it can be",
    "simulate": "what a trace of traffic would meet in a fleet of replicas",
    "compare": "run a load through the batching policies, one after another",
    "trace": "draw the batch, slot by slot and step by step",
    "quantize": "make a model smaller: few bits for each weight, as many as it needs",
    "adapt": "train an adapter that repairs what quantizing cost",
    "bench": "run loads against the limits of this machine",
    "eval": "how good a model is: the perplexity of a text",
    "env": "versions, CPU features, active kernels, and how a model is sampled",
}
"""Verb -> one line of help; the verb's module is loire.cli.<verb>."""

_EPILOG = """\
  loire run "What is the capital of Japan?"
  git diff | loire run "Write a commit message"
  loire chat
  loire serve
  loire launch codex

`loire VERB --help` has the options of a verb. Where no model is named it is smollm2.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status. 2 is a mistake of usage, 1 a failure, 130 Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    passed_on: list[str] = []
    if arguments[:1] == ["launch"] and "--" in arguments:
        place = arguments.index("--")
        arguments, passed_on = arguments[:place], arguments[place + 1 :]
    try:
        parser, verb_parser = _parser(arguments[0] if arguments else "")
        args, unknown = parser.parse_known_args(arguments)
        if unknown:
            asked = verb_parser or parser
            asked.error(f"unrecognized arguments: {' '.join(unknown)}; see `{asked.prog} --help`")
        args.passed_on = passed_on
        if args.verb is None:
            parser.print_help()
            return 2
        return _run(args, verb_parser)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser | None) -> int:
    from loire.base.errors import LoireError

    try:
        return int(import_module(f"loire.cli.{args.verb}").run(args))
    except LoireError as error:
        print(f"loire {args.verb}: {_in_flags(str(error), parser)}", file=sys.stderr)
        return 1


def _in_flags(message: str, parser: argparse.ArgumentParser | None) -> str:
    """A message in the command line's words: --max-model-len, where the engine says max_model_len.

    Plain words, without an underscore, are left alone.
    """
    flags = {
        action.dest: action.option_strings[0]
        for action in (parser._actions if parser is not None else ())
        if action.option_strings and "_" in action.dest
    }
    return re.sub(r"\b\w+_\w+\b", lambda word: flags.get(word[0], word[0]), message)


def _parser(verb: str) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """The parser, and within it that of the one verb that is used, with its arguments."""
    parser = argparse.ArgumentParser(
        prog="loire",
        description="An LLM inference and serving engine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"loire {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    used = None
    for name, summary in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:])
        if name == verb:
            import_module(f"loire.cli.{name}").add_arguments(sub)
            sub.usage = _usage(sub)
            used = sub
    return parser, used


def _usage(parser: argparse.ArgumentParser) -> str:
    """A line of usage: with all options, it would fill a screen above every mistake."""
    formatter = parser._get_formatter()
    formatter.add_usage(None, parser._get_positional_actions(), [], prefix="")
    words = formatter.format_help().split()
    return " ".join([*words[:2], "[OPTION ...]", *words[2:]])
