"""A GGUF model in one file or in several, and whether a file is GGUF at all."""

import re
from pathlib import Path

from loire.base.errors import CheckpointError
from loire.checkpoint.gguf_file import MAGIC, GGUFFile, read_gguf

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
MAX_PARTS = 1024


def is_gguf(path: Path) -> bool:
    """By its name, or else by how it begins: stores such as Ollama's name files by their hash."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_model(path: Path) -> GGUFFile:
    """The header of a model. Any of its parts may be named; the first one has the metadata.

    Raises CheckpointError if a part is missing or belongs to another model, and what read_gguf()
    raises.
    """
    match = _PART.fullmatch(path.name)
    first = path if match is None else path.with_name(f"{match[1]}-00001-of-{match[3]}.gguf")
    if match is not None and not first.exists():
        first = path  # the name says nothing, or the error below will
    head = read_gguf(first)
    count = head.metadata.get("split.count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_PARTS:
        raise CheckpointError(f"{first}: split.count is {str(count)[:40]}, not 1 to {MAX_PARTS}")
    if count <= 1:
        return head
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{first} is one of {count} parts of a model, but is not named like one: "
            f"NAME-00001-of-{count:05}.gguf"
        )
    tensors = dict(head.tensors)
    for index in range(count):
        part = path.with_name(f"{match[1]}-{index + 1:05}-of-{match[3]}{path.suffix}")
        if not part.exists():
            raise CheckpointError(f"{first.name} has {count} parts, but {part} is missing")
        other = head if part == first else read_gguf(part)
        number = other.metadata.get("split.no", index)
        if (number, other.metadata.get("split.count")) != (index, count):
            raise CheckpointError(
                f"{part} says that it is part {str(number)[:20]} (from 0) of "
                f"{str(other.metadata.get('split.count'))[:20]}, not {index} of {count}"
            )
        if other is head:
            continue
        twice = tensors.keys() & other.tensors.keys()
        if twice:
            raise CheckpointError(f"{part}: tensor {min(twice)!r} is in another part, too")
        tensors |= other.tensors
    expected = head.metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise CheckpointError(
            f"the {count} parts of {first.name} hold {len(tensors)} tensors, but should "
            f"hold {str(expected)[:20]}"
        )
    return GGUFFile(first, head.metadata, tensors)
