"""Add, revoke and list the API keys of a file."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from loire.base.errors import ConfigError
from loire.checkpoint.file_lock import file_lock
from loire.server.access.key_file import add_key, limit_words, new_key, read_keys, revoke_key
from loire.server.access.keys import adapter_words, check_name, parse_key
from loire.server.access.rates import Limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire keys`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it; the file keeps its hash only")
    revoke = actions.add_parser("revoke", help="remove a key")
    show = actions.add_parser("list", help="the names of the keys, their limits and adapters")
    for action in (add, revoke, show):
        action.add_argument(
            "--file", type=Path, required=True, help="a file of --api-key-file or --admin-key-file"
        )
    for action in (add, revoke):
        action.add_argument("name", help="of the key and so of its tenant")
    for field in fields(Limits):
        name = field.name.replace("_", "-")
        add.add_argument(f"--{name}", type=int, metavar="N", help="a limit of this key's own")
    add.add_argument(
        "--adapters",
        type=adapter_names,
        metavar="NAME,NAME",
        help="adapters that this key may use; with '' none of them [all]",
    )


def adapter_names(text: str) -> frozenset[str]:
    """Names with commas between them, as an argparse type."""
    if any(character.isspace() for character in text):
        raise argparse.ArgumentTypeError(f"{text!r} has a space: names of adapters have none")
    return frozenset(filter(None, text.split(",")))


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    path: Path = args.file
    if args.action == "list":
        for key in read_keys(path):
            print("  ".join([key.name, *limit_words(key.limits), *adapter_words(key.adapters)]))
        return 0
    check_name(args.name, place="NAME")
    with _changing(path):
        if args.action == "revoke":
            revoke_key(path, args.name)
            return 0
        text = new_key()
        limits = Limits(**{field.name: getattr(args, field.name) for field in fields(Limits)})
        key = parse_key(f"{args.name}:{text}", place="NAME", limits=limits)
        add_key(path, replace(key, adapters=args.adapters))
    print(text)
    return 0


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Nobody else changes the file meanwhile. Raises ConfigError if that cannot be."""
    try:
        with file_lock(path.with_name(path.name + ".lock"), lambda: None):
            yield
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be changed: {error}") from error
