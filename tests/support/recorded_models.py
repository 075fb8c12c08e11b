"""Tiny models with the same weights on every machine: torch's generators round by processor."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

from support.tiny_models import save_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _gemma4(**settings: Any) -> Gemma4ForCausalLM:
    """The last three of eight layers read the keys and values of the fourth and the fifth."""
    return Gemma4ForCausalLM(
        Gemma4TextConfig(
            num_hidden_layers=8,
            sliding_window=24,
            layer_types=[
                *["sliding_attention"] * 4,
                "full_attention",
                *["sliding_attention"] * 2,
                "full_attention",
            ],
            global_head_dim=32,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            num_kv_shared_layers=3,
            use_double_wide_mlp=True,
            hidden_size_per_layer_input=16,
            vocab_size_per_layer_input=259,
            num_experts=6,
            top_k_experts=2,
            moe_intermediate_size=32,
            **settings,
            **SIZES,
        )
    )


def _deepseek_v3() -> DeepseekV3ForCausalLM:
    """Latent attention, and experts in groups from the second layer on."""
    sizes = {**SIZES, "num_key_value_heads": 4}
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            num_hidden_layers=3,
            first_k_dense_replace=1,
            q_lora_rank=32,
            kv_lora_rank=48,
            qk_nope_head_dim=24,
            qk_rope_head_dim=16,
            v_head_dim=32,
            n_routed_experts=8,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            moe_intermediate_size=32,
            **{key: value for key, value in sizes.items() if key != "head_dim"},
        )
    )


MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=2, tie_word_embeddings=False, **SIZES)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            num_hidden_layers=6,
            sliding_window=24,
            query_pre_attn_scalar=16,
            layer_types=[*["sliding_attention"] * 5, "full_attention"],
            **SIZES,
        )
    ),
    "qwen3_5": lambda: Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            num_hidden_layers=4,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            layer_types=[*["linear_attention"] * 2, "full_attention", "linear_attention"],
            **SIZES,
        )
    ),
    "nemotron_h": lambda: NemotronHForCausalLM(
        NemotronHConfig(
            layers_block_type=["linear_attention", "moe", "full_attention", "linear_attention"],
            mamba_num_heads=8,
            mamba_head_dim=16,
            n_groups=2,
            ssm_state_size=16,
            n_routed_experts=6,
            moe_intermediate_size=32,
            moe_shared_expert_intermediate_size=48,
            **SIZES,
        )
    ),
    "gemma4": lambda: _gemma4(enable_moe_block=True),
    "deepseek_v3": _deepseek_v3,
    "gemma4_dense": lambda: _gemma4(enable_moe_block=False),
}


def save(kind: str, directory: Path) -> Path:
    """Save one of MODELS as a Hugging Face directory, with a byte-level tokenizer."""
    model = MODELS[kind]()
    random = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            whole = torch.from_numpy(random.integers(-128, 129, parameter.shape) / 128)
            scale = 0.1 if "embed_tokens.weight" in name and kind.startswith("gemma") else 0.4
            if name.endswith("A_log"):
                scale = 2.0
            parameter.copy_(1 + whole / 4 if "norm" in name else whole * scale)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory
