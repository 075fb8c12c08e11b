"""List the models of the store."""

import argparse
import json

from loire.base.errors import LoireError
from loire.checkpoint.store import StoredModel, list_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire models`."""
    parser.add_argument("--json", action="store_true", help="one JSON list on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    models = [(model, _weight_bytes(model)) for model in list_models()]
    if args.json:
        print(
            json.dumps(
                [
                    {
                        "name": model.name,
                        "present": model.present,
                        "bytes": model.num_bytes,
                        "weights_bytes": weight_bytes,
                        "path": None if model.path is None else str(model.path),
                        "source": model.source,
                        "license": model.license,
                    }
                    for model, weight_bytes in models
                ]
            )
        )
        return 0
    for model, weight_bytes in models:
        # In memory where that is known, as it is what `loire plan` says; else the download.
        num_bytes = model.num_bytes if weight_bytes is None else weight_bytes
        size = f"{num_bytes / 1e6:,.0f} MB" if num_bytes else ""
        state = "present" if model.present else "loire pull " + model.name
        print(f"{model.name:<32}{size:>10}  {state:<28}{model.license}")
    return 0


def _weight_bytes(model: StoredModel) -> int | None:
    """What its weights take in memory; None if it is not here, or Loire does not read it."""
    if model.path is None:
        return None
    from loire.checkpoint.open import open_checkpoint
    from loire.planning.model_size import size_of_checkpoint

    try:
        checkpoint = open_checkpoint(model.path)
    except LoireError:
        return None
    size = size_of_checkpoint(
        checkpoint,
        model.name,
        dtype="bfloat16",
        quantization=None,
        kv_dtype="bfloat16",
        on_cpu=True,
    )
    return size.weight_bytes
