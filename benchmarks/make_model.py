"""Writes a model of random weights in a given shape, for measuring speed.

    python benchmarks/make_model.py OUT               # the 1B shape that engines are compared on
    python benchmarks/make_model.py OUT --layers 4    # a quarter of it

Llama: hidden 2048, 16 layers, 32 heads, 8 KV heads of 64, intermediate 8192, vocabulary 49152, tied
embeddings, rope_theta 500000, 8192 positions, seed 0, deviation 0.02, bfloat16: 1.07 billion
parameters. The tokenizer is that of a GGUF model, by default SmolLM2's.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
from loire.text.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    for name, default in (
        ("hidden", 2048), ("layers", 16), ("heads", 32), ("kv-heads", 8), ("head-dim", 64),
        ("intermediate", 8192), ("vocab", 49152), ("positions", 8192),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.head_dim,
        "intermediate_size": args.intermediate,
        "vocab_size": args.vocab,
        "max_position_embeddings": args.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    save_file(random_weights(args), args.out / "model.safetensors", metadata={"format": "pt"})
    source = open_checkpoint(resolve_model("smollm2")).tokenizer
    load_tokenizer(source).rust.save(str(args.out / "tokenizer.json"))
    size = (args.out / "model.safetensors").stat().st_size
    print(f"{args.out}: {size / 1e9:.2f} GB")


def random_weights(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).bfloat16()

    hidden, inner, dim = args.hidden, args.intermediate, args.head_dim
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    weights = {"model.embed_tokens.weight": normal(args.vocab, hidden), "model.norm.weight": ones}
    for layer in range(args.layers):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": ones.clone(),
            prefix + "post_attention_layernorm.weight": ones.clone(),
            prefix + "self_attn.q_proj.weight": normal(args.heads * dim, hidden),
            prefix + "self_attn.k_proj.weight": normal(args.kv_heads * dim, hidden),
            prefix + "self_attn.v_proj.weight": normal(args.kv_heads * dim, hidden),
            prefix + "self_attn.o_proj.weight": normal(hidden, args.heads * dim),
            prefix + "mlp.gate_proj.weight": normal(inner, hidden),
            prefix + "mlp.up_proj.weight": normal(inner, hidden),
            prefix + "mlp.down_proj.weight": normal(hidden, inner),
        }
    return weights


if __name__ == "__main__":
    main()
