"""Writes a model of random weights in few bits, as `loire quantize` would, for measuring speed.

    python benchmarks/few_bits_model.py OUT --bits 3.5

The shape is the 3b of make_model.py. Matrices have palettes of 3 bits (3.25 with scales), as many
of them 4 (4.25) as the average allows. Of each width 256 rows are random, the others repeat them:
how fast a model is does not depend on its numbers.
"""

import argparse
import json
from pathlib import Path

import torch
from make_model import COMMON, SHAPES, matrices_of, save_tokenizer

from loire.checkpoint.huggingface_config import describe
from loire.checkpoint.saved_description import VERSION, written
from loire.checkpoint.weights import Matrix, Vector, each
from loire.kernels.block_formats import StoredTensor
from loire.quantize.levels import Levels
from loire.quantize.rounding import round_to_nearest
from loire.quantize.run import BY_NAME
from loire.quantize.save import Piece, write_piece

ROWS = 256
THREE, FOUR = BY_NAME["P3"], BY_NAME["P4"]
CONFIG = SHAPES["3b"] | COMMON


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=float, default=3.5)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    args = parser.parse_args()
    description = describe(CONFIG | {"num_hidden_layers": args.layers}, "this shape")
    weights = tuple(each(description.weights()))
    matrices = [weight for weight in weights if isinstance(weight, Matrix)]
    sizes = {weight.name: weight.inputs * weight.outputs for weight in matrices}
    chosen = levels_of(sizes, args.bits)
    model: Piece = {
        weight.name: torch.ones(weight.size) for weight in weights if isinstance(weight, Vector)
    }
    samples: dict[tuple[Levels, int], StoredTensor] = {}
    formats: dict[str, str] = {}
    for weight in matrices:
        stored = random_blocks(weight, chosen[weight.name], samples)
        model |= stored
        formats |= {name: tensor.format.name for name, tensor in stored.items()}
    args.out.mkdir(parents=True)
    write_piece(args.out / "model.safetensors", model)
    config = {"model_type": "loire", "version": VERSION, "formats": formats}
    config["description"] = written(description)
    (args.out / "config.json").write_text(json.dumps(config))
    save_tokenizer(args.out)
    bits = sum(chosen[name].bits * size for name, size in sizes.items()) / sum(sizes.values())
    total = (args.out / "model.safetensors").stat().st_size
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


def random_blocks(
    weight: Matrix, levels: Levels, samples: dict[tuple[Levels, int], StoredTensor]
) -> dict[str, StoredTensor]:
    """A weight's tensors by their names in such files. samples: of each format and width, kept."""
    if (levels, weight.inputs) not in samples:
        values = torch.randn(ROWS, weight.inputs, generator=torch.Generator().manual_seed(0)) * 0.02
        samples[levels, weight.inputs] = round_to_nearest(values, torch.ones(weight.inputs), levels)
    sample = samples[levels, weight.inputs]
    return {
        f"{name}.weight": sample.rows(torch.arange(count) % ROWS)
        for name, count in matrices_of(weight)
    }


if __name__ == "__main__":
    main()
