"""Small models whose matrices are quantized in each way that safetensors files have, and one
mistake in them: in what says how they are quantized, in the header, or in the weights."""

import random
import struct
from typing import Any

import samples

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
    "packed": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "int8": {"quant_method": "compressed-tensors", "format": "int-quantized"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
_SIZES = {"I32": 4, "I64": 8, "F16": 2, "F32": 4, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1}


def _parts(method: str, rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a matrix is made of: dtype and shape by ending."""
    groups = columns // 32
    return {
        "gptq": {
            "qweight": ("I32", (columns // 8, rows)),
            "qzeros": ("I32", (groups, rows // 8)),
            "scales": ("F16", (groups, rows)),
            "g_idx": ("I32", (columns,)),
        },
        "awq": {
            "qweight": ("I32", (columns, rows // 8)),
            "qzeros": ("I32", (groups, rows // 8)),
            "scales": ("F16", (groups, rows)),
        },
        "packed": {
            "weight_packed": ("I32", (rows, columns // 8)),
            "weight_scale": ("F16", (rows, groups)),
            "weight_shape": ("I64", (2,)),
            "weight_zero_point": ("I32", (rows // 8, groups)),
        },
        "int8": {"weight": ("I8", (rows, columns)), "weight_scale": ("F32", (rows, 1))},
        "fp8": {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", (1, 1))},
    }[method]


def _content(ending: str, dtype: str, shape: tuple[int, ...], matrix: tuple[int, ...]) -> bytes:
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    if ending == "weight_shape":
        return struct.pack("<2q", *matrix)
    if ending == "g_idx":
        return struct.pack(f"<{count}i", *(i // 32 for i in range(count)))
    if dtype in ("F16", "F32"):
        return struct.pack(f"<{count}{'e' if dtype == 'F16' else 'f'}", *([0.01] * count))
    return bytes((i * 37) % 113 for i in range(count * _SIZES[dtype]))


def header(method: str) -> tuple[dict[str, Any], bytes]:
    """Of a safetensors file, and what follows it: samples.header() with quantized layers."""
    plain, plain_body = samples.header()
    found: dict[str, Any] = {"__metadata__": plain.pop("__metadata__")}
    body = b""

    def add(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        nonlocal body
        offsets = [len(body), len(body) + len(data)]
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        body += data

    for name, entry in plain.items():
        first, last = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if "_proj." not in name:
            add(name, "F32", shape, plain_body[first:last])
            continue
        for ending, (dtype, size) in _parts(method, *shape).items():
            part = name.removesuffix("weight") + ending
            add(part, dtype, size, _content(ending, dtype, size, shape))
    return found, body


def files(method: str) -> dict[str, Any]:
    """A Hugging Face directory, as samples.files() has it."""
    contents = samples.files()
    contents["config.json"]["quantization_config"] = dict(CONFIGURATIONS[method])
    contents[samples.SINGLE] = samples.safetensors(*header(method))
    return contents


def changed(rng: random.Random, method: str, json_value: Any, data: Any) -> tuple[str, Any]:
    """What is changed, and a directory with one mistake. json_value, data: those of mutate.py."""
    contents = files(method)
    head, body = header(method)
    match rng.choice(("configuration", "bytes", "weights", "tensor", "header")):
        case "configuration":
            config = contents["config.json"]
            config["quantization_config"] = json_value(rng, config["quantization_config"])
            return f"{method}: config.json", contents
        case "bytes":
            contents[samples.SINGLE] = data(rng, contents[samples.SINGLE], 10**6)
            return f"{method}: bytes", contents
        case "weights":
            body = _other_weights(rng, body)
        case "tensor":
            _other_tensor(rng, head)
        case _:
            head = json_value(rng, head)
    contents[samples.SINGLE] = samples.safetensors(head, body)
    return f"{method}: {samples.SINGLE}", contents


def _other_weights(rng: random.Random, body: bytes) -> bytes:
    """Among the numbers are infinities and such that are none."""
    found = bytearray(body)
    for _ in range(rng.choice((1, 8, 1000))):
        byte = rng.choice((0, 0x7C, 0x7F, 0xFF, rng.randrange(256)))
        found[rng.randrange(len(found))] = byte
    return bytes(found)


def _other_tensor(rng: random.Random, head: dict[str, Any]) -> None:
    """As many bytes in another dtype and shape."""
    entry = head[rng.choice([name for name in head if "_proj." in name])]
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    entry["dtype"] = rng.choice(list(_SIZES))
    count = size // _SIZES[entry["dtype"]]
    entry["shape"] = rng.choice(([count], [1, count], [count, 1], [0, count]))
