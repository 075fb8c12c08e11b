"""Which model it is, by content: for what is kept beside it and outlives a process."""

import hashlib
from pathlib import Path
from typing import BinaryIO

from loire.checkpoint.checkpoint import Checkpoint

SAMPLE_BYTES = 2**16
"""Read of each tensor, from its middle: other weights differ everywhere, and gigabytes are not
read twice for it."""


def model_digest(checkpoint: Checkpoint) -> str:
    """Of the description, and of each tensor's name, shape, format and a sample of its bytes.

    Raises OSError if a file cannot be read.
    """
    whole = hashlib.sha256(repr(checkpoint.description).encode())
    files: dict[Path, BinaryIO] = {}
    try:
        for name in sorted(checkpoint.tensors):
            info = checkpoint.tensors[name]
            what = (name, info.shape, info.format.name, info.interleaved_heads)
            whole.update(repr(what).encode())
            for part in info.parts:
                if part.path not in files:
                    files[part.path] = part.path.open("rb")
                size = min(part.num_bytes, SAMPLE_BYTES)
                files[part.path].seek(part.offset + (part.num_bytes - size) // 2)
                whole.update(files[part.path].read(size))
    finally:
        for file in files.values():
            file.close()
    return whole.hexdigest()
