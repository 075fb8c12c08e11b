"""Small models that are whole and right: what the fuzzer changes."""

import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

STRING, ARRAY, U32, I32, F32 = 8, 9, 4, 5, 6
SINGLE = "model.safetensors"
HEADS, KV_HEADS, LAYERS = 4, 2, 1
Size = tuple[int, int]
"""Of the stream, and within an MLP."""
SIZE: Size = (32, 64)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokens() -> list[str]:
    """Three special tokens, the byte-level alphabet, two merged ones."""
    from tokenizers import pre_tokenizers

    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll"]


def shapes(size: Size = SIZE) -> dict[str, tuple[int, ...]]:
    """All tensors of a tiny Llama under the names of GGUF."""
    hidden, inner = size
    kv = hidden // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens()), hidden),
        "output_norm.weight": (hidden,),
    }
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        found |= {
            f"{prefix}attn_norm.weight": (hidden,),
            f"{prefix}ffn_norm.weight": (hidden,),
            f"{prefix}attn_q.weight": (hidden, hidden),
            f"{prefix}attn_k.weight": (kv, hidden),
            f"{prefix}attn_v.weight": (kv, hidden),
            f"{prefix}attn_output.weight": (hidden, hidden),
            f"{prefix}ffn_gate.weight": (inner, hidden),
            f"{prefix}ffn_up.weight": (inner, hidden),
            f"{prefix}ffn_down.weight": (hidden, inner),
        }
    return found


_COMMON = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@cache
def _data(shape: tuple[int, ...]) -> bytes:
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    return struct.pack(f"<{count}f", *(((i * 37) % 101 - 50) / 500 for i in range(count)))


BLOCKS = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20),
          "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84),
          "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
          "Q6_K": (14, 256, 210), "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74),
          "IQ3_XXS": (18, 256, 98), "IQ4_NL": (20, 32, 18), "IQ3_S": (21, 256, 110),
          "IQ2_S": (22, 256, 82), "IQ4_XS": (23, 256, 136), "BF16": (30, 1, 2),
          "MXFP4": (39, 32, 17)}  # fmt: skip
"""Number, elements and bytes of a block of the formats of GGUF."""


def size_for(weights: str) -> Size:
    """Rows of whole blocks."""
    return (256, 256) if BLOCKS[weights][1] == 256 else SIZE


@cache
def _packed(name: str, shape: tuple[int, ...]) -> bytes:
    """Small bytes, so that scales are small numbers, too."""
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    _, elements, size = BLOCKS[name]
    return bytes((i * 37) % 29 for i in range(count // elements * size))


def metadata(kind: str = "gpt2", size: Size = SIZE) -> dict[str, tuple[int, Any]]:
    """Keys of a GGUF file: (type, value); an array's value is (type, values)."""
    words = tokens()
    return {
        "general.architecture": (STRING, "llama"),
        "llama.context_length": (U32, 128),
        "llama.embedding_length": (U32, size[0]),
        "llama.block_count": (U32, LAYERS),
        "llama.feed_forward_length": (U32, size[1]),
        "llama.attention.head_count": (U32, HEADS),
        "llama.attention.head_count_kv": (U32, KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "tokenizer.ggml.model": (STRING, kind),
        "tokenizer.ggml.pre": (STRING, "smollm"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, words)),
        "tokenizer.ggml.token_type": (ARRAY, (I32, [3] * 3 + [1] * (len(words) - 3))),
        "tokenizer.ggml.scores": (ARRAY, (F32, [0.0] * len(words))),
        "tokenizer.ggml.merges": (ARRAY, (STRING, ["h e", "l l"])),
        "tokenizer.ggml.bos_token_id": (U32, 0),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tokenizer.chat_template": (STRING, TEMPLATE),
    }


_CODES = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(data)) + data
    if kind == ARRAY:
        inner, items = value
        head = struct.pack("<IQ", inner, len(items))
        return head + b"".join(_value(inner, item) for item in items)
    return struct.pack("<" + _CODES[kind], value)


@dataclass
class Entry:
    """A tensor as a GGUF file lists it."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def gguf_tensors(weights: str = "F32", size: Size = SIZE) -> tuple[list[Entry], bytes]:
    """A tiny Llama's tensors, and what they hold. weights: format of the matrices."""
    entries, body = [], b""
    for name, shape in shapes(size).items():
        body = body.ljust(-(-len(body) // 32) * 32, b"\0")
        packed = weights if len(shape) > 1 else "F32"
        entries.append(Entry(name, shape, BLOCKS[packed][0], len(body)))
        body += _data(shape) if packed == "F32" else _packed(packed, shape)
    return entries, body


def gguf(keys: dict[str, tuple[int, Any]], weights: str = "F32", tensors: Any = None) -> bytes:
    """A GGUF file of these keys and, where no other (entries, contents) are given, of a tiny
    Llama's tensors. Raises struct.error for misfits."""
    entries, body = tensors or gguf_tensors(weights, size_for(weights))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(keys))
    for key, (kind, value) in keys.items():
        out += _value(STRING, key) + struct.pack("<I", kind) + _value(kind, value)
    for entry in entries:
        out += _value(STRING, entry.name) + struct.pack("<I", len(entry.shape))
        out += struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))
        out += struct.pack("<IQ", entry.type, entry.offset)
    return out.ljust(-(-len(out) // 32) * 32, b"\0") + body


def config(size: Size = SIZE) -> dict[str, Any]:
    """config.json of the same model."""
    return {
        "model_type": "llama",
        "vocab_size": len(tokens()),
        "hidden_size": size[0],
        "intermediate_size": size[1],
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": [2],
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "dtype": "float32",
    }


def header(size: Size = SIZE) -> tuple[dict[str, Any], bytes]:
    """Header of a safetensors file, and what follows it."""
    found: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, shape in shapes(size).items():
        parts = name.split(".")
        middle = ".".join([_COMMON[parts[-2]], parts[-1]])
        data = _data(shape)
        found[f"model.layers.{parts[1]}.{middle}" if parts[0] == "blk" else middle] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    return found, body


def tokenizer(kind: str = "BPE") -> dict[str, Any]:
    """tokenizer.json; kind: BPE or Unigram."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    pattern = {"Regex": r"\p{N}| ?[^\s\p{N}]+|\s+"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    words = tokens()
    model: dict[str, Any] = {
        "type": kind,
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: index for index, token in enumerate(words)},
        "merges": ["h e", "l l"],
    }
    if kind == "Unigram":
        scored = [[token, -index / 10] for index, token in enumerate(words)]
        model = {"type": kind, "unk_id": 0, "vocab": scored, "byte_fallback": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, "special": True, **flags}
            for index, token in enumerate(SPECIAL)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": None,
        "decoder": level,
        "model": model,
    }


def safetensors(head: dict[str, Any], body: bytes) -> bytes:
    """A file of this header and these weights."""
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


def files(
    kind: str = "BPE", *, sharded: bool = False, named: bool = False, size: Size = SIZE
) -> dict[str, Any]:
    """A Hugging Face directory: name -> JSON, text or bytes.

    kind: of the tokenizer. sharded: weights in two files with an index. named: several templates,
    in tokenizer_config.json.
    """
    head, body = header(size)
    names: dict[str, Any] = {"eos_token": "<|im_end|>", "bos_token": {"content": SPECIAL[0]}}
    if named:
        names["chat_template"] = [
            {"name": name, "template": TEMPLATE} for name in ("default", "tool_use")
        ]
    found = {
        "config.json": config(size),
        "generation_config.json": {"eos_token_id": [2], "temperature": 0.6, "top_p": 0.9},
        "tokenizer.json": tokenizer(kind),
        "tokenizer_config.json": names,
        **({} if named else {"chat_template.jinja": TEMPLATE}),
    }
    return found | (shards(head, body) if sharded else {SINGLE: safetensors(head, body)})


def shards(head: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The same tensors in two files, and their index."""
    parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    bodies = [b"", b""]
    where: dict[str, str] = {}
    names = [name for name in head if name != "__metadata__"]
    for number, name in enumerate(names):
        part = number % 2
        begin, end = head[name]["data_offsets"]
        at = len(bodies[part])
        parts[part][name] = {**head[name], "data_offsets": [at, at + end - begin]}
        bodies[part] += body[begin:end]
        where[name] = f"model-{part + 1:05}-of-00002.safetensors"
    index = {"metadata": {"total_size": len(body)}, "weight_map": where}
    return {"model.safetensors.index.json": index} | {
        f"model-{part + 1:05}-of-00002.safetensors": safetensors(parts[part], bodies[part])
        for part in (0, 1)
    }


def read(directory: Path) -> dict[str, Any]:
    """The files of a directory: JSON as its value, all else as bytes."""
    return {
        path.name: json.loads(path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
        for path in sorted(directory.iterdir())
    }


def write(directory: Path, contents: dict[str, Any]) -> Path:
    """Write a directory anew."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if isinstance(content, dict | list):
            content = json.dumps(content)
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogatepass")
        (directory / name).write_bytes(content)
    return directory
