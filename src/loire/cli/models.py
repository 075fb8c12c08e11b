"""List the models of the store."""

import argparse
import json

from loire.checkpoint.store import list_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire models`."""
    parser.add_argument("--json", action="store_true", help="one JSON list on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    models = list_models()
    if args.json:
        print(
            json.dumps(
                [
                    {
                        "name": model.name,
                        "present": model.present,
                        "bytes": model.num_bytes,
                        "path": None if model.path is None else str(model.path),
                        "source": model.source,
                        "license": model.license,
                    }
                    for model in models
                ]
            )
        )
        return 0
    for model in models:
        size = f"{model.num_bytes / 1e6:,.0f} MB" if model.num_bytes else ""
        state = "present" if model.present else "loire pull " + model.name
        print(f"{model.name:<32}{size:>10}  {state:<28}{model.license}")
    return 0
