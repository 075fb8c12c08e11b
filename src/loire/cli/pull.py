"""Fetch a model into the local store."""

import argparse
import json

from loire.checkpoint.store import resolve_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire pull`."""
    parser.add_argument("name", help="a name listed by `loire models`, or a hub id (org/name)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    path = resolve_model(args.name, allow_download=True)
    print(json.dumps({"name": args.name, "path": str(path)}) if args.json else path)
    return 0
