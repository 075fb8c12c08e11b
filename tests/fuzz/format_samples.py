"""Small models in each format that weights are kept in, with one mistake where the format is told
or in the weights themselves: lengths that lie, types that are none, scales that are zero, infinite
or no numbers."""

import random
from collections.abc import Callable
from typing import Any

import quantized_samples
import samples

GGUF = tuple(name for name, block in samples.BLOCKS.items() if block[1] > 1)
SAFETENSORS = (*quantized_samples.WAYS, "mxfp4", *quantized_samples.PALETTES)
FORMATS = (*GGUF, *SAFETENSORS)


def gguf(rng: random.Random, name: str, data: Callable[..., bytes]) -> bytes:
    """A GGUF file in that format with one mistake. data: of mutate.py."""
    size = samples.size_for(name)
    keys = samples.metadata(size=size)
    entries, body = samples.gguf_tensors(name, size)
    entry = rng.choice([entry for entry in entries if len(entry.shape) > 1])
    match rng.choice(("weights", "weights", "type", "shape", "offset", "bytes", "end")):
        case "weights":
            body = quantized_samples.other_weights(rng, body)
        case "type":
            entry.type = rng.choice((rng.randrange(45), 2**32 - 1))
        case "shape":
            shape = list(entry.shape)
            at = rng.randrange(2)
            shape[at] = rng.choice((shape[at] + 1, shape[at] - 1, shape[at] * 2, 1, 2**40))
            entry.shape = tuple(shape) if rng.random() < 0.8 else tuple(shape[:1])
        case "offset":
            entry.offset = rng.choice((entry.offset + 32, entry.offset - 32, 1, 2**63)) % 2**64
        case "bytes":
            whole = samples.gguf(keys, tensors=(entries, body))
            tail = len(body) + 1500  # the list of tensors, and what they hold
            return whole[:-tail] + data(rng, whole[-tail:], tail)
        case _:
            body = body[: rng.randrange(len(body))]
    return samples.gguf(keys, tensors=(entries, body))


def files(rng: random.Random, name: str, json_value: Any, data: Any) -> dict[str, Any]:
    """A directory in that format with one mistake. json_value, data: of mutate.py."""
    contents: dict[str, Any] = quantized_samples.changed(rng, name, json_value, data)[1]
    return contents
