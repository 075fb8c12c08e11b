"""Small models whose matrices are quantized in each way that safetensors files have, and one
mistake in them: in what says how they are quantized, in the header, or in the weights."""

import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import samples

from loire.checkpoint.huggingface_config import describe
from loire.checkpoint.saved_description import VERSION, written

Parts = dict[str, tuple[str, tuple[int, ...]]]
"""What a matrix is made of: dtype and shape by ending."""
_SIZES = {"I32": 4, "I64": 8, "F16": 2, "F32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
          "F8_E8M0": 1}  # fmt: skip
_WIDE: samples.Size = (128, 256)


@dataclass(frozen=True)
class Way:
    """One of them."""

    configuration: dict[str, Any]
    parts: Callable[[int, int], Parts]
    """Of a matrix [rows, columns]."""
    size: samples.Size = samples.SIZE
    shuffled: bool = False
    """Whether inputs come in another order than their groups do."""


def _gptq(bits: int, group: int, *, symmetric: bool = False, shuffled: bool = False) -> Way:
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric,
              "desc_act": shuffled}  # fmt: skip

    def parts(rows: int, columns: int) -> Parts:
        groups = columns // group
        return {
            "qweight": ("I32", (columns * bits // 32, rows)),
            "qzeros": ("I32", (groups, rows * bits // 32)),
            "scales": ("F16", (groups, rows)),
            "g_idx": ("I32", (columns,)),
        }

    return Way(config, parts, samples.SIZE if group == 32 else _WIDE, shuffled)


def _awq(rows: int, columns: int) -> Parts:
    return {
        "qweight": ("I32", (columns, rows // 8)),
        "qzeros": ("I32", (columns // 32, rows // 8)),
        "scales": ("F16", (columns // 32, rows)),
    }


def _compressed(fmt: str) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": fmt}


def _packed(bits: int, group: int, *, zeros: bool = False) -> Way:
    def parts(rows: int, columns: int) -> Parts:
        groups, per_word = columns // group, 32 // bits
        found: Parts = {
            "weight_packed": ("I32", (rows, columns // per_word)),
            "weight_scale": ("F16", (rows, groups)),
            "weight_shape": ("I64", (2,)),
        }
        return found | ({"weight_zero_point": ("I32", (rows // per_word, groups))} if zeros else {})

    size = samples.SIZE if group == 32 else _WIDE
    return Way(_compressed("pack-quantized"), parts, size)


def _nvfp4(rows: int, columns: int) -> Parts:
    return {
        "weight_packed": ("U8", (rows, columns // 2)),
        "weight_scale": ("F8_E4M3", (rows, columns // 16)),
        "weight_global_scale": ("F32", (1,)),
    }


def _modelopt(rows: int, columns: int) -> Parts:
    return {
        "weight": ("F8_E4M3", (rows, columns)),
        "weight_scale": ("F32", ()),
        "input_scale": ("F32", ()),
    }


def _codes(dtype: str, scale: str, *, in_blocks: bool = False) -> Callable[[int, int], Parts]:
    def parts(rows: int, columns: int) -> Parts:
        shape = (-(-rows // 128), -(-columns // 128)) if in_blocks else (rows, 1)
        ending = "weight_scale_inv" if in_blocks else "weight_scale"
        return {"weight": (dtype, (rows, columns)), ending: (scale, shape)}

    return parts


_MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
WAYS: dict[str, Way] = {
    "gptq": _gptq(4, 32),
    "gptq_ordered": _gptq(4, 32, shuffled=True),
    "gptq_128": _gptq(4, 128),
    "gptq_8": _gptq(8, 128),
    "gptq_2": _gptq(2, 32),
    "gptq_3": _gptq(3, 64),
    "nvfp4": Way(_compressed("nvfp4-pack-quantized"), _nvfp4, _WIDE),
    "modelopt": Way(_MODELOPT, _modelopt, _WIDE),
    "awq": Way({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, _awq),
    "packed": _packed(4, 32, zeros=True),
    "packed_128": _packed(4, 128),
    "packed_8": _packed(8, 128),
    "int8": Way(_compressed("int-quantized"), _codes("I8", "F32"), _WIDE),
    "fp8": Way(_FP8, _codes("F8_E4M3", "F32", in_blocks=True), _WIDE),
    "fp8_powers": Way(_FP8, _codes("F8_E4M3", "F8_E8M0", in_blocks=True), _WIDE),
    "fp8_channel": Way(_compressed("float-quantized"), _codes("F8_E4M3", "F32"), _WIDE),
    "fp8_e5m2": Way(_compressed("float-quantized"), _codes("F8_E5M2", "F32"), _WIDE),
}


def _content(way: Way, ending: str, dtype: str, shape: tuple[int, ...], columns: int) -> bytes:
    count = math.prod(shape)
    if ending == "g_idx":
        group = way.configuration["group_size"]
        given = [i * 7 % columns if way.shuffled else i for i in range(count)]
        return struct.pack(f"<{count}i", *(i // group for i in given))
    if dtype in ("F16", "F32"):
        return struct.pack(f"<{count}{'e' if dtype == 'F16' else 'f'}", *([0.01] * count))
    return bytes((i * 37) % 113 for i in range(count * _SIZES[dtype]))


class _Body:
    """Tensors one behind the other, and the header that tells where they lie."""

    def __init__(self) -> None:
        self.head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self.data = b""

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        offsets = [len(self.data), len(self.data) + len(data)]
        self.head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        self.data += data


def header(name: str) -> tuple[dict[str, Any], bytes]:
    """Of a safetensors file, and what follows it: samples.header() with quantized layers."""
    way = WAYS[name]
    plain, plain_body = samples.header(way.size)
    found = _Body()
    for tensor, entry in plain.items():
        if tensor == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if "_proj." not in tensor:
            found.add(tensor, "F32", shape, plain_body[first:last])
            continue
        for ending, (dtype, size) in way.parts(*shape).items():
            if ending == "weight_shape":
                data = struct.pack("<2q", *shape)
            else:
                data = _content(way, ending, dtype, size, shape[1])
            found.add(tensor.removesuffix("weight") + ending, dtype, size, data)
    return found.head, found.data


def files(name: str) -> dict[str, Any]:
    """A Hugging Face directory, as samples.files() has it."""
    contents = samples.files(size=WAYS[name].size)
    contents["config.json"]["quantization_config"] = dict(WAYS[name].configuration)
    return contents


def mxfp4_header() -> tuple[dict[str, Any], bytes]:
    """A tiny gpt-oss of one layer and two experts, codes and exponents apart."""
    hidden, inner = samples.SIZE
    vocab, heads = len(samples.tokens()), hidden // samples.HEADS
    found = _Body()

    def floats(name: str, *shape: int) -> None:
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        numbers = (((i * 37) % 101 - 50) / 500 for i in range(count))
        found.add(name, "F32", shape, struct.pack(f"<{count}f", *numbers))

    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        floats(name, vocab, hidden)
    layer = "model.layers.0."
    for norm in ("model.norm", f"{layer}input_layernorm", f"{layer}post_attention_layernorm"):
        floats(f"{norm}.weight", hidden)
    kv = samples.KV_HEADS * heads
    for part, shape in {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden),
                        "o": (hidden, hidden)}.items():  # fmt: skip
        floats(f"{layer}self_attn.{part}_proj.weight", *shape)
        floats(f"{layer}self_attn.{part}_proj.bias", shape[0])
    floats(f"{layer}self_attn.sinks", samples.HEADS)
    floats(f"{layer}mlp.router.weight", 2, hidden)
    floats(f"{layer}mlp.router.bias", 2)
    for part, (rows, columns) in {"gate_up": (2 * inner, hidden), "down": (hidden, inner)}.items():
        name, groups = f"{layer}mlp.experts.{part}_proj", columns // 32
        codes = bytes((i * 37) % 251 for i in range(2 * rows * groups * 16))
        found.add(f"{name}_blocks", "U8", (2, rows, groups, 16), codes)
        powers = bytes(118 + i % 5 for i in range(2 * rows * groups))
        found.add(f"{name}_scales", "U8", (2, rows, groups), powers)
        floats(f"{name}_bias", 2, rows)
    return found.head, found.data


def mxfp4_files() -> dict[str, Any]:
    """Its directory."""
    contents = samples.files()
    contents["config.json"] |= {
        "model_type": "gpt_oss",
        "head_dim": samples.SIZE[0] // samples.HEADS,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "tie_word_embeddings": False,
        "rope_scaling": None,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    return contents


PALETTES = {"P2": (18, 4), "P3": (26, 8), "P4": (34, 16)}
"""What `loire quantize` writes: bytes of a block of 64, and levels."""
_LEVEL_ROWS = 64


def palette_header(name: str) -> tuple[dict[str, Any], bytes]:
    """Matrices in blocks, each with levels of its own."""
    plain, plain_body = samples.header(_WIDE)
    (block, levels), found = PALETTES[name], _Body()
    for tensor, entry in plain.items():
        if tensor == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        if len(entry["shape"]) == 1:
            found.add(tensor, "F32", tuple(entry["shape"]), plain_body[first:last])
            continue
        rows, columns = entry["shape"]
        for ending, dtype, shape in (
            ("", "U8", (rows, columns // 64 * block)),
            ("_levels", "I8", (-(-rows // _LEVEL_ROWS), levels)),
        ):
            content = bytes((i * 37) % 45 for i in range(math.prod(shape)))
            found.add(f"{tensor}{ending}", dtype, shape, content)
    return found.head, found.data


def palette_files(name: str) -> dict[str, Any]:
    """Its directory."""
    contents = samples.files(size=_WIDE)
    head, _ = palette_header(name)
    matrices = [key for key, entry in head.items() if entry.get("dtype") == "U8"]
    contents["config.json"] = {
        "model_type": "loire",
        "version": VERSION,
        "formats": dict.fromkeys(matrices, name),
        "level_rows": dict.fromkeys(matrices, _LEVEL_ROWS),
        "description": written(describe(contents["config.json"], "config.json")),
    }
    return contents


def _of(name: str) -> tuple[dict[str, Any], tuple[dict[str, Any], bytes]]:
    """A directory without weights, and those."""
    if name == "mxfp4":
        return mxfp4_files(), mxfp4_header()
    if name in PALETTES:
        return palette_files(name), palette_header(name)
    return files(name), header(name)


def changed(rng: random.Random, name: str, json_value: Any, data: Any) -> tuple[str, Any]:
    """What is changed, and a directory with one mistake. json_value, data: those of mutate.py."""
    contents, (head, body) = _of(name)
    whole = None
    match rng.choice(("configuration", "bytes", "weights", "tensor", "header")):
        case "configuration":
            config = contents["config.json"]
            told = ("formats", "level_rows") if name in PALETTES else ("quantization_config",)
            key = rng.choice(told)
            config[key] = json_value(rng, config[key])
        case "bytes":
            whole = data(rng, samples.safetensors(head, body), 10**6)
        case "weights":
            body = other_weights(rng, body)
        case "tensor":
            _other_tensor(rng, head)
        case _:
            head = json_value(rng, head)
    contents[samples.SINGLE] = samples.safetensors(head, body) if whole is None else whole
    return name, contents


def other_weights(rng: random.Random, body: bytes) -> bytes:
    """Among the numbers are zeros, infinities and such that are none."""
    found = bytearray(body)
    for _ in range(rng.choice((1, 8, 1000))):
        byte = rng.choice((0, 0x7C, 0x7F, 0xFF, rng.randrange(256)))
        first = rng.randrange(len(found))
        for at in range(first, min(first + rng.choice((1, 2, 4)), len(found))):
            found[at] = byte
    return bytes(found)


def _other_tensor(rng: random.Random, head: dict[str, Any]) -> None:
    """As many bytes in another dtype and shape, in another place, or none; or one less."""
    name = rng.choice([name for name in head if "_proj" in name])
    entry = head[name]
    first, last = entry["data_offsets"]
    match rng.choice(("dtype", "dtype", "place", "size", "none")):
        case "dtype":
            entry["dtype"] = rng.choice(list(_SIZES))
            count = (last - first) // _SIZES[entry["dtype"]]
            shapes = [[count], [1, count], [count, 1], [0, count], entry["shape"][::-1]]
            entry["shape"] = rng.choice(shapes)
        case "place":
            entry["data_offsets"] = [first - 4, last - 4]
        case "size":
            at = rng.randrange(len(entry["shape"])) if entry["shape"] else None
            if at is not None:
                entry["shape"][at] = max(entry["shape"][at] + rng.choice((-1, 1, 7)), 0)
        case _:
            del head[name]
