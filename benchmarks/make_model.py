"""Writes a model of random weights in a given shape, for measuring speed.

    python benchmarks/make_model.py OUT                             # the 1B shape
    python benchmarks/make_model.py OUT --layers 4                  # a quarter of it
    python benchmarks/make_model.py OUT --shape 30b-a3b --layers 4  # Qwen3 30B-A3B's layers
    python benchmarks/make_model.py OUT --shape 4b-hybrid --layers 8

1b, which engines are compared on: Llama, hidden 2048, 16 layers, 32 heads, 8 KV heads of 64,
intermediate 8192, tied embeddings, rope_theta 500000: 1.07 billion parameters. 3b: Llama 3.2 3B's
28 layers, 2.97 billion. 30b-a3b: Qwen3-MoE,
hidden 2048, 48 layers, 32 heads, 4 KV heads of 128, 128 experts of 768, of which a token chooses 8.
4b-hybrid: Qwen3.5 4B's 32 layers, three gated delta nets before each attention. 35b-a3b: the same
kinds of layer with 256 experts of 512 and a shared one. gpt-oss: gpt-oss 20B, its experts in 16
bits (in their own four: gguf_models.py). granite-h: Granite 4.0 H Tiny, nine Mamba-2
to each attention. glm-flash: GLM-4.7-Flash, latent attention.
All: vocabulary 49152, 8192 positions, seed 0, deviation 0.02, bfloat16. The tokenizer is that of a
GGUF model, by default SmolLM2's.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from loire.checkpoint.huggingface_config import describe
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
from loire.checkpoint.weights import Filters, Matrix, Vector, Weight, each
from loire.text.tokenizer import load_tokenizer

Shape = dict[str, Any]
SHAPES: dict[str, Shape] = {
    "1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    "30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
}
SHAPES["3b"] = SHAPES["1b"] | {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "head_dim": 128,
}
SHAPES["4b-hybrid"] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
    },
    "tie_word_embeddings": True,
}
_HYBRID = SHAPES["4b-hybrid"]
SHAPES["35b-a3b"] = {
    **{key: value for key, value in _HYBRID.items() if key != "intermediate_size"},
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}
SHAPES["granite-h"] = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "model_type": "granitemoehybrid",
    "hidden_size": 1536,
    "num_hidden_layers": 40,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "shared_intermediate_size": 1024,
    "num_local_experts": 64,
    "num_experts_per_tok": 6,
    "mamba_n_heads": 48,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "position_embedding_type": "nope",
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0078125,
    "logits_scaling": 6.0,
    "tie_word_embeddings": True,
}
SHAPES["glm-flash"] = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "hidden_size": 2048,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 64,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
SHAPES["gpt-oss"] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "tie_word_embeddings": False,
}
COMMON: Shape = {
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CHANGES = {
    "hidden": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv-heads": "num_key_value_heads", "head-dim": "head_dim",
    "intermediate": "intermediate_size", "vocab": "vocab_size",
    "positions": "max_position_embeddings",
}  # fmt: skip
"""Options that change a shape, and what of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    for name, key in CHANGES.items():
        parser.add_argument(f"--{name}", type=int, dest=key, metavar="N")
    args = parser.parse_args()
    changes = {key: value for key in CHANGES.values() if (value := getattr(args, key)) is not None}
    config = SHAPES[args.shape] | COMMON | changes
    if args.shape == "granite-h":
        layers = range(config["num_hidden_layers"])
        config["layer_types"] = ["attention" if i % 10 == 5 else "mamba" for i in layers]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    save_file(random_weights(config), args.out / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(args.out)
    size = (args.out / "model.safetensors").stat().st_size
    print(f"{args.out}: {size / 1e9:.2f} GB")


def save_tokenizer(out: Path) -> None:
    """The default model's, into a directory."""
    source = open_checkpoint(resolve_model("smollm2")).tokenizer
    load_tokenizer(source).rust.save(str(out / "tokenizer.json"))


def matrices_of(weight: Matrix) -> Iterator[tuple[str, int]]:
    """Those that it is put together from in such files: names, and rows of each."""
    names = weight.parts or (weight.name,)
    return zip(names, weight.rows if weight.parts else (weight.outputs,), strict=True)


def random_weights(config: Shape) -> dict[str, torch.Tensor]:
    """Of every weight that a model of this configuration has, by its name in such files."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).bfloat16()

    def of(weight: Weight) -> dict[str, torch.Tensor]:
        if isinstance(weight, Filters):
            return {weight.name: normal(weight.channels, 1, weight.width)}
        if isinstance(weight, Vector):
            # Norms multiply by 1, with what they add.
            value = 1.0 - weight.offset if "norm" in weight.name else 0.0
            name = weight.name.replace(".dt.bias", ".dt_bias")
            return {name: torch.full((weight.size,), value, dtype=torch.bfloat16)}
        found = {}
        for name, count in matrices_of(weight):
            found[f"{name}.weight"] = normal(count, weight.inputs)
            if weight.bias:
                found[f"{name}.bias"] = torch.zeros(count, dtype=torch.bfloat16)
        return found

    weights: dict[str, torch.Tensor] = {}
    for weight in each(describe(config, "this shape").weights()):
        weights |= of(weight)
    return weights


if __name__ == "__main__":
    main()
