"""A short name for a model's content, by which fronts and replicas notice that theirs differ.

Reading all weights would take as long as loading them. Their names and shapes are taken, and the
first bytes of each: a model that was trained any further differs in them.
"""

import hashlib
from collections.abc import Iterator

from loire.checkpoint.checkpoint import Checkpoint, TensorInfo, TokenizerSource

SAMPLE_BYTES = 64
"""Of each tensor."""


def model_digest(checkpoint: Checkpoint) -> str:
    """Of weights and tokenizer, in hexadecimal; the same wherever the files lie."""
    digest = hashlib.sha256()
    for part in (*_weights(checkpoint), *_tokenizer(checkpoint.tokenizer)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:32]


def _weights(checkpoint: Checkpoint) -> Iterator[bytes]:
    yield repr(checkpoint.description).encode()
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: (tensor.path, tensor.offset))
    paths = dict.fromkeys(tensor.path for tensor in tensors)
    for path in paths:
        with path.open("rb") as file:
            for tensor in tensors:
                if tensor.path == path:
                    file.seek(tensor.offset)
                    yield _heading(tensor)
                    yield file.read(min(SAMPLE_BYTES, tensor.num_bytes))


def _heading(tensor: TensorInfo) -> bytes:
    return f"{tensor.name} {tensor.shape} {tensor.num_bytes}".encode()


def _tokenizer(source: TokenizerSource) -> Iterator[bytes]:
    if source.tokenizer_json is not None:
        yield source.tokenizer_json.read_bytes()
    for key, value in sorted((source.gguf_metadata or {}).items()):
        if key.startswith("tokenizer."):
            yield key.encode()
            # Lists and numpy arrays; the latter's repr leaves most of them out.
            is_list = not isinstance(value, str) and hasattr(value, "__iter__")
            yield repr(list(value) if is_list else value).encode()  # type: ignore[call-overload]
