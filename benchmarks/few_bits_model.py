"""Writes a model of random weights in few bits, as `loire quantize` would, for measuring speed.

    python benchmarks/few_bits_model.py OUT --bits 3.5

The shape is Llama 3.2 3B's with SmolLM2's vocabulary and tokenizer: hidden 3072, 28 layers, 24
heads, 8 KV heads of 128, intermediate 8192, tied embeddings, 2.97 billion parameters. Matrices have
palettes of 3 bits (3.25 with scales), as many of them 4 (4.25) as the average allows. Of each width
256 rows are random, the others repeat them: how fast a model is does not depend on its numbers.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from make_model import COMMON

from loire.checkpoint.huggingface_config import describe
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.saved_description import VERSION, written
from loire.checkpoint.store import resolve_model
from loire.checkpoint.weights import Vector, Weight, each
from loire.kernels.block_formats import StoredTensor
from loire.quantize.levels import LEVELS, Levels
from loire.quantize.rounding import round_to_nearest
from loire.quantize.save import Piece, write_piece
from loire.text.tokenizer import load_tokenizer

ROWS = 256
THREE, FOUR = (next(each for each in LEVELS if each.format.name == name) for name in ("P3", "P4"))
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
} | COMMON


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=float, default=3.5)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    description = describe(CONFIG | {"num_hidden_layers": args.layers}, "this shape")
    weights = tuple(each(description.weights()))
    sizes = {
        weight.name: weight.inputs * weight.outputs
        for weight in weights
        if not isinstance(weight, Vector)
    }
    chosen = levels_of(sizes, args.bits)
    samples: dict[tuple[Levels, int], torch.Tensor] = {}
    places, formats, total = {}, {}, 0
    for number, weight in enumerate(weights):
        name = f"part-{number:04}.safetensors"
        piece = tensors(weight, chosen, samples)
        write_piece(args.out / name, piece)
        places |= dict.fromkeys(piece, name)
        formats |= {
            key: tensor.format.name
            for key, tensor in piece.items()
            if isinstance(tensor, StoredTensor)
        }
        total += (args.out / name).stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "loire",
        "version": VERSION,
        "formats": formats,
        "description": written(description),
    }
    (args.out / "config.json").write_text(json.dumps(config))
    source = open_checkpoint(resolve_model("smollm2")).tokenizer
    load_tokenizer(source).rust.save(str(args.out / "tokenizer.json"))
    bits = sum(chosen[name].bits * size for name, size in sizes.items()) / sum(sizes.values())
    print(f"{args.out}: {total / 1e9:.2f} GB, {bits:.2f} bits per weight")


def levels_of(sizes: dict[str, int], bits: float) -> dict[str, Levels]:
    """The format of each weight, by name: four bits from the first on, as long as they last."""
    spare = (bits - THREE.bits) * sum(sizes.values())
    chosen = {}
    for name, size in sizes.items():
        more = (FOUR.bits - THREE.bits) * size
        chosen[name] = FOUR if more <= spare else THREE
        spare -= more if more <= spare else 0
    return chosen


def tensors(
    weight: Weight, chosen: dict[str, Levels], samples: dict[tuple[Levels, int], torch.Tensor]
) -> Piece:
    """A weight's tensors by their names in such files."""
    if isinstance(weight, Vector):
        return {weight.name: torch.ones(weight.size)}
    levels, inputs = chosen[weight.name], weight.inputs
    if (levels, inputs) not in samples:
        values = torch.randn(ROWS, inputs, generator=torch.Generator().manual_seed(0)) * 0.02
        samples[levels, inputs] = round_to_nearest(values, torch.ones(inputs), levels)
    blocks = samples[levels, inputs]
    names = weight.parts or (weight.name,)
    rows = weight.rows if weight.parts else (weight.outputs,)
    return {
        f"{name}.weight": StoredTensor(
            levels.format, blocks.repeat(math.ceil(count / ROWS), 1)[:count].contiguous()
        )
        for name, count in zip(names, rows, strict=True)
    }


if __name__ == "__main__":
    main()
