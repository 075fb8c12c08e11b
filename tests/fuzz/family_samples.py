"""A tiny model of every supported family, as files by name: made once for a run."""

import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import samples

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))


@cache
def families() -> dict[str, dict[str, Any]]:
    """Name of the family -> files; configurations as JSON values, weights as bytes."""
    import transformers
    from families import FAMILIES

    transformers.utils.logging.disable_progress_bar()

    found = {}
    for family in FAMILIES:
        settings = {**family.settings, "vocab_size": len(samples.tokens())}
        small = replace(family, settings=settings)
        with tempfile.TemporaryDirectory() as scratch:
            small.save(Path(scratch))
            found[family.name] = samples.read(Path(scratch))
    return found


def files(name: str) -> dict[str, Any]:
    """A directory of this family, with the tokenizer and the template of the other samples."""
    rest = {
        key: value
        for key, value in samples.files().items()
        if key.startswith(("tokenizer", "chat_template"))
    }
    return {**families()[name], **rest}
