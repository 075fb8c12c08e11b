"""GGUF files of random weights in a shape and a mix of types, for measuring speed.

    python benchmarks/gguf_models.py OUT.gguf --shape 7b --mix Q4_K_M --ggml libggml-base.so

The mixes are those of llama-quantize without an importance matrix: which tensors of Q4_K_M have
Q6_K, which of IQ4_XS Q5_K. In MXFP4 all layers' matrices have it (of mixtures the experts), the
others Q8_0. Of each type and width 256 rows are random, the others repeat them: how fast a file is
does not depend on its numbers. 1b is the shape of make_model.py; 7b is Llama 3.1 8B with SmolLM2's
vocabulary (7.38 billion parameters), 30b-a3b Qwen3 30B-A3B's, gpt-oss gpt-oss 20B's (no K-quants:
2,880 is no multiple of 256). --layers makes fewer of them. The tokenizer is SmolLM2's.
"""

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ggml
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value
from numpy.typing import NDArray

from loire.checkpoint.store import resolve_model

MIXES = ("Q4_K_M", "Q8_0", "IQ4_XS", "MXFP4")
ROWS = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model. architecture: as GGUF names it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    tied: bool
    experts: int = 0
    chosen: int = 0
    """Experts of a token."""
    architecture: str = "llama"

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Rows and columns of a layer's, by name; experts before them."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = {
            "attn_q": (queries, self.hidden), "attn_k": (keys, self.hidden),
            "attn_v": (keys, self.hidden), "attn_output": (self.hidden, queries),
        }  # fmt: skip
        experts, suffix = ((self.experts,), "_exps") if self.experts else ((), "")
        wide, narrow = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        return attention | {
            f"ffn_gate{suffix}": (*experts, *wide),
            f"ffn_up{suffix}": (*experts, *wide),
            f"ffn_down{suffix}": (*experts, *narrow),
        }

    def vectors(self) -> dict[str, tuple[float, tuple[int, ...]]]:
        """A layer's numbers that are not quantized: all the same value, and their sizes."""
        found: dict[str, tuple[float, tuple[int, ...]]] = {
            "attn_norm.weight": (1.0, (self.hidden,))
        }
        if self.architecture == "qwen3moe":
            for name in ("attn_q_norm", "attn_k_norm"):
                found[f"{name}.weight"] = 1.0, (self.head_size,)
        if self.architecture != "gpt-oss":
            return found | {"ffn_norm.weight": (1.0, (self.hidden,))}
        found |= {
            "post_attention_norm.weight": (1.0, (self.hidden,)),
            "attn_sinks.weight": (0.0, (self.heads,)),
            "ffn_gate_inp.bias": (0.0, (self.experts,)),
        }
        for name, size in self.matrices().items():
            found[f"{name}.bias"] = 0.0, size[:-1]
        return found


SHAPES = {
    "1b": Shape(2048, 16, 32, 8, 64, 8192, tied=True),
    "7b": Shape(4096, 32, 32, 8, 128, 14336, tied=False),
    "30b-a3b": Shape(2048, 48, 32, 4, 128, 768, False, 128, 8, "qwen3moe"),
    "gpt-oss": Shape(2880, 24, 64, 8, 64, 2880, False, 32, 4, "gpt-oss"),
}


def type_in(mix: str, name: str, layer: int, shape: Shape) -> Type:
    """What a mix stores a matrix in."""
    name = name.removesuffix("_exps")
    is_head = name == "output" or (name == "token_embd" and shape.tied)
    if mix == "Q8_0":
        return Type.Q8_0
    if mix == "MXFP4":
        is_kept = name in ("output", "token_embd") or (shape.experts and name.startswith("attn"))
        return Type.Q8_0 if is_kept else Type.MXFP4
    if is_head:
        return Type.Q6_K
    eighth = shape.layers // 8
    if mix == "IQ4_XS":
        more = (name == "attn_v" and shape.heads >= 4 * shape.kv_heads) or (
            name == "ffn_down" and layer < eighth
        )
        return Type.Q5_K if more else Type.IQ4_XS
    important = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
    more = name in ("attn_v", "ffn_down") and important
    return Type.Q6_K if more else Type.Q4_K


def make(path: Path, shape: Shape, mix: str, quantizer: ggml.Quantizer) -> None:
    """Write the file."""
    reader = gguf.GGUFReader(resolve_model("smollm2"))
    tokenizer = {
        key: field
        for key, field in ggml.read_fields(reader).items()
        if key.startswith("tokenizer.") and key != "tokenizer.chat_template"
    }
    vocabulary = len(tokenizer["tokenizer.ggml.tokens"][0])
    rng = np.random.default_rng(0)
    samples: dict[tuple[Type, int], NDArray[np.uint8]] = {}

    def matrix(name: str, *size: int, layer: int = 0) -> ggml.Tensor:
        *experts, rows, columns = size
        kind = type_in(mix, name, layer, shape)
        if (kind, columns) not in samples:
            values = rng.standard_normal((ROWS, columns), dtype=np.float32) * 0.02
            samples[kind, columns] = quantizer.blocks(values, kind)
        sample = samples[kind, columns]

        def rows_again() -> NDArray[np.uint8]:
            several = math.prod(experts) * rows
            return np.tile(sample, (-(-several // ROWS), 1))[:several]

        full = name if name in ("output", "token_embd") else f"blk.{layer}.{name}"
        return ggml.Tensor(f"{full}.weight", kind, size, rows_again)

    def vector(name: str, value: float, size: tuple[int, ...]) -> ggml.Tensor:
        return ggml.Tensor(name, Type.F32, size, lambda: np.full(size, value, dtype=np.float32))

    def router(layer: int) -> ggml.Tensor:
        values = rng.standard_normal((shape.experts, shape.hidden), dtype=np.float32)
        return ggml.Tensor(
            f"blk.{layer}.ffn_gate_inp.weight", Type.F32, values.shape, lambda: values
        )

    tensors = [
        matrix("token_embd", vocabulary, shape.hidden),
        vector("output_norm.weight", 1.0, (shape.hidden,)),
    ]
    if not shape.tied:
        tensors.append(matrix("output", vocabulary, shape.hidden))
    for layer in range(shape.layers):
        tensors += [vector(f"blk.{layer}.{n}", *v) for n, v in shape.vectors().items()]
        tensors += [matrix(name, *size, layer=layer) for name, size in shape.matrices().items()]
        if shape.experts:
            tensors.append(router(layer))
    numbers: dict[str, tuple[Any, Value]] = {
        "block_count": (shape.layers, Value.UINT32),
        "context_length": (8192, Value.UINT32),
        "embedding_length": (shape.hidden, Value.UINT32),
        "feed_forward_length": (shape.intermediate, Value.UINT32),
        "attention.head_count": (shape.heads, Value.UINT32),
        "attention.head_count_kv": (shape.kv_heads, Value.UINT32),
        "attention.layer_norm_rms_epsilon": (1e-5, Value.FLOAT32),
        "rope.freq_base": (500000.0, Value.FLOAT32),
        "rope.dimension_count": (shape.head_size, Value.UINT32),
        "attention.key_length": (shape.head_size, Value.UINT32),
        "attention.value_length": (shape.head_size, Value.UINT32),
        "vocab_size": (vocabulary, Value.UINT32),
    }
    if shape.experts:
        numbers |= {
            "expert_count": (shape.experts, Value.UINT32),
            "expert_used_count": (shape.chosen, Value.UINT32),
            "expert_feed_forward_length": (shape.intermediate, Value.UINT32),
        }
    if shape.architecture == "gpt-oss":
        numbers["attention.sliding_window"] = (128, Value.UINT32)
    fields: dict[str, tuple[Any, Any, Any]] = {
        "general.architecture": (shape.architecture, Value.STRING, None),
        "general.name": (f"random {mix}", Value.STRING, None),
        **{f"{shape.architecture}.{key}": (*number, None) for key, number in numbers.items()},
        **tokenizer,
    }
    unfinished = path.with_suffix(".unfinished")
    ggml.write(unfinished, fields, tensors)
    unfinished.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--layers", type=int, help="[those of the shape]")
    parser.add_argument("--mix", choices=MIXES, default="Q4_K_M")
    parser.add_argument("--ggml", type=Path, required=True, help="libggml-base.so")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    shape = replace(shape, layers=args.layers or shape.layers)
    make(args.out, shape, args.mix, ggml.Quantizer(args.ggml))
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
