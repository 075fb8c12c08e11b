"""Tiny random models of every supported family, made with transformers' own classes.

Between them they exercise what the families differ in: head_dim other than hidden / heads, grouped
and single key/value heads, tied and untied outputs, biases, norms of heads, soft caps, windows
shorter than the tests' sequences, partial rotation and every rotary scaling.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

BASE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
DELTA_NET: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "partial_rotary_factor": 0.25,
}
SHARED: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
LATENTS: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 8,
    "v_head_dim": 28,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.3,
    "logits_scaling": 5.0,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
}
MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 24}
NEMOTRON: dict[str, Any] = {
    "head_dim": 24,
    "mamba_num_heads": 6,
    "mamba_head_dim": 24,
    "n_groups": 2,
    "ssm_state_size": 16,
    "time_step_min": 1e-20,  # transformers holds it in prompts alone
    "rescale_prenorm_residual": False,
}
SHORT = [1.0 + 0.1 * i for i in range(8)]
LONG = [1.5 + 0.7 * i for i in range(8)]


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **values}


MOVED = ("bias", "sinks", ".scale", "_scale", "A_log", ".D")
"""Ends of names of parameters that are not random in a new model."""


@dataclass(frozen=True)
class Family:
    """A model to be: configuration class, settings, and the longest window to serve it with."""

    name: str
    family: str
    """Prefix of transformers' classes."""
    settings: dict[str, Any] = field(default_factory=dict)
    prompt_len: int = 45
    max_model_len: int = 160
    tolerance: float = 1e-4
    """Of logits, as a share of the largest. A norm behind a delta rule enlarges differences."""
    vision: dict[str, Any] | None = None
    """Settings of the part for images, where there is no class of the text part alone."""
    has_near_ties: bool = False
    """Whether in bfloat16 some tokens choose other experts: few, but they differ much."""

    def config(self) -> Any:
        """Its configuration, as transformers has it."""
        config_class: Callable[..., Any] = getattr(transformers, f"{self.family}Config")
        settings = {**BASE, **self.settings}
        if self.vision is not None:
            settings = {"text_config": settings, "vision_config": self.vision}
            settings["tie_word_embeddings"] = False
        config = config_class(**settings)
        config._attn_implementation = "eager"
        return config

    def build(self, seed: int = 0) -> PreTrainedModel:
        """In float32, with norms and biases that are random too, so that they matter."""
        torch.manual_seed(seed)
        prefix = self.family.removesuffix("Text")
        kind = "ForCausalLM" if self.vision is None else "ForConditionalGeneration"
        model_class = getattr(transformers, f"{prefix}{kind}")
        config = self.config()
        model: PreTrainedModel = model_class(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith(MOVED):
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                if self.family.startswith("Gemma4") and "q_norm" in name:
                    # Scores are not scaled but by these: by that much in a trained model.
                    parameter.mul_(len(parameter) ** -0.5)
            for name, buffer in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    buffer.add_(torch.randn_like(buffer) * 0.2)
                if name.endswith("layer_scalar"):
                    buffer.mul_(0.6 + 0.3 * torch.rand_like(buffer))
            if config.tie_word_embeddings:
                # Else the newest token's own embedding decides alone, and is chosen for ever.
                model.get_input_embeddings().weight.mul_(0.1)
        return model

    def save(self, directory: Path) -> PreTrainedModel:
        """Build and save as a Hugging Face directory."""
        model = self.build()
        model.save_pretrained(directory)
        return model


LOCAL, GLOBAL = "sliding_attention", "full_attention"
GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 20,
    "layer_types": [LOCAL, GLOBAL, LOCAL, GLOBAL],
    "hidden_size_per_layer_input": 0,
}
PER_LAYER = {"hidden_size_per_layer_input": 24, "vocab_size_per_layer_input": 128}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}
KEYS_AS_VALUES = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}

FAMILIES = [
    Family("llama2", "Llama", {"num_key_value_heads": 4}),
    Family("llama_head_dim_tied", "Llama", {"head_dim": 24, "tie_word_embeddings": True}),
    Family("llama_biases", "Llama", {"attention_bias": True, "mlp_bias": True}),
    Family("llama_single_kv_head", "Llama", {"num_key_value_heads": 1}),
    Family(
        "llama31",
        "Llama",
        {
            "rope_parameters": rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            )
        },
    ),
    Family("llama_linear", "Llama", {"rope_parameters": rope("linear", factor=2.5)}),
    Family(
        "llama_yarn",
        "Llama",
        {"rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=64)},
    ),
    Family(
        "llama_yarn_explicit",
        "Llama",
        {
            "rope_parameters": rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=64,
                attention_factor=1.3,
                beta_fast=4.0,
                beta_slow=0.5,
                truncate=False,
            )
        },
    ),
    Family("mistral", "Mistral", {"sliding_window": None, "head_dim": 32}),
    Family("mistral_window", "Mistral", {"sliding_window": 24}),
    Family("qwen2", "Qwen2"),
    Family(
        "qwen2_windows",
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 20,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    Family("qwen3", "Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    Family("qwen3_biases", "Qwen3", {"head_dim": 16, "attention_bias": True}),
    Family("gemma", "Gemma", {"head_dim": 24, "attention_bias": True}),
    Family(
        "gemma2",
        "Gemma2",
        {
            "head_dim": 24,
            "sliding_window": 20,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    Family(
        "gemma3",
        "Gemma3Text",
        {
            "head_dim": 24,
            "num_hidden_layers": 4,
            "sliding_window": 20,
            "query_pre_attn_scalar": 20,
            "sliding_window_pattern": 3,
        },
    ),
    Family(
        "gemma3_stretched",
        "Gemma3Text",
        {
            "head_dim": 16,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    Family(
        "gemma3_every_sixth",
        "Gemma3Text",
        {
            "head_dim": 16,
            "num_hidden_layers": 7,
            "sliding_window": 20,
            "query_pre_attn_scalar": 16,
        },
    ),
    Family("gemma4_keys_as_values", "Gemma4Text", {**GEMMA4, **KEYS_AS_VALUES}),
    Family(
        "gemma4_per_layer",
        "Gemma4Text",
        {
            **GEMMA4,
            **PER_LAYER,
            "num_hidden_layers": 7,
            "layer_types": [LOCAL, GLOBAL, LOCAL, LOCAL, LOCAL, GLOBAL, LOCAL],
            "num_kv_shared_layers": 4,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 4.0,
        },
    ),
    Family("gemma4_experts", "Gemma4Text", {**GEMMA4, **EXPERTS, **KEYS_AS_VALUES}),
    Family(
        "gemma4_everything",
        "Gemma4Text",
        {
            **GEMMA4,
            **PER_LAYER,
            **EXPERTS,
            **KEYS_AS_VALUES,
            "num_hidden_layers": 8,
            "layer_types": [LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL, LOCAL, LOCAL, GLOBAL],
            "num_kv_shared_layers": 3,
            "attention_bias": True,
        },
    ),
    Family(
        "gemma4_unified",
        "Gemma4UnifiedText",
        {
            **{key: value for key, value in GEMMA4.items() if "per_layer" not in key},
            **KEYS_AS_VALUES,
            "num_hidden_layers": 7,
            "layer_types": None,
        },
    ),
    Family(
        "mixtral",
        "Mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 24},
    ),
    Family(
        "qwen3_moe",
        "Qwen3Moe",
        {
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
    ),
    Family(
        "qwen3_moe_mixed",
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
        },
    ),
    Family(
        "ministral3",
        "Ministral3",
        {
            "head_dim": 24,
            "sliding_window": 30,
            "rope_parameters": rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                beta_fast=4.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.4,
            ),
        },
    ),
    Family("smollm3", "SmolLM3", {"num_hidden_layers": 4}),
    Family(
        "smollm3_windows",
        "SmolLM3",
        {
            "no_rope_layers": [0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 20,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    Family(
        "granite",
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.3,
            "logits_scaling": 5.0,
            "rms_norm_eps": 0.05,
            "attention_bias": True,
        },
    ),
    Family(
        "granitemoe",
        "GraniteMoe",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.3,
            "logits_scaling": 5.0,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": True,
        },
    ),
    Family("olmo2", "Olmo2", {"attention_bias": True, "hidden_size": 96}),
    Family("olmo3", "Olmo3", {"num_hidden_layers": 5, "sliding_window": 20}),
    Family(
        "olmo3_stretched",
        "Olmo3",
        {
            "sliding_window": 20,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": rope(
                    "yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=4.0
                ),
                "sliding_attention": rope("default"),
            },
        },
    ),
    Family(
        "olmoe",
        "Olmoe",
        {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": False},
    ),
    Family("seed_oss", "SeedOss", {"head_dim": 24, "attention_out_bias": True}),
    Family(
        "gpt_oss",
        "GptOss",
        {
            "head_dim": 32,
            "sliding_window": 20,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "swiglu_alpha": 1.5,
            "swiglu_limit": 1.1,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    Family(
        "deepseek_v2",
        "DeepseekV2",
        {
            **LATENTS,
            "q_lora_rank": 40,
            "n_group": 4,
            "topk_group": 2,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.5,
            "first_k_dense_replace": 1,
        },
        has_near_ties=True,
    ),
    Family(
        "deepseek_v2_lite",
        "DeepseekV2",
        {
            **LATENTS,
            "q_lora_rank": None,
            "topk_method": "greedy",
            "attention_bias": True,
            "rope_parameters": rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=64,
                mscale=0.707,
                mscale_all_dim=0.9,
            ),
        },
        has_near_ties=True,
    ),
    Family(
        "deepseek_v3",
        "DeepseekV3",
        {
            **LATENTS,
            "q_lora_rank": 40,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            "rope_parameters": rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=64,
                mscale=1.0,
                mscale_all_dim=1.0,
            ),
        },
        has_near_ties=True,
    ),
    Family(
        "deepseek_v3_halves",
        "DeepseekV3",
        {
            **LATENTS,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "first_k_dense_replace": 2,
            "rope_interleave": False,
        },
        has_near_ties=True,
    ),
    Family(
        "glm4_moe_lite",
        "Glm4MoeLite",
        {**LATENTS, "q_lora_rank": 40, "mlp_layer_types": ["dense", "sparse", "sparse"]},
        has_near_ties=True,
    ),
    Family("glm4", "Glm4", {"head_dim": 24}),
    Family(
        "glm4_whole",
        "Glm4",
        {
            "attention_bias": False,
            "num_key_value_heads": 1,
            "rope_parameters": rope("default", partial_rotary_factor=1.0),
        },
    ),
    Family(
        "muse_glimmer",
        "MuseGlimmer",
        {"num_hidden_layers": 5, "head_dim": 24, "sliding_window": 20, "post_norm_eps": 1e-3},
        vision={
            "num_hidden_layers": 1,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "patch_size": 2,
        },
    ),
    Family("exaone4", "Exaone4", {"num_hidden_layers": 5, "sliding_window": 20}),
    Family(
        "exaone4_plain",
        "Exaone4",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 3,
            "tie_word_embeddings": True,
            "rope_parameters": rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    Family("phi3", "Phi3", {"tie_word_embeddings": False}),
    Family("phi3_window", "Phi3", {"sliding_window": 20}),
    Family(
        "phi4_mini",
        "Phi3",
        {
            "tie_word_embeddings": True,
            "rope_parameters": rope("default", partial_rotary_factor=0.75),
        },
    ),
    Family(
        "phi3_longrope_short",
        "Phi3",
        {
            "rope_parameters": rope("longrope", short_factor=SHORT, long_factor=LONG),
            "original_max_position_embeddings": 128,
        },
        max_model_len=128,
    ),
    Family(
        "phi3_longrope_long",
        "Phi3",
        {
            "rope_parameters": rope(
                "longrope",
                short_factor=SHORT[:6],
                long_factor=LONG[:6],
                partial_rotary_factor=0.75,
            ),
            "original_max_position_embeddings": 32,
        },
    ),
    Family(
        "qwen3_5",
        "Qwen3_5Text",
        {
            **DELTA_NET,
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "rope_parameters": rope("default", partial_rotary_factor=0.5, mrope_section=[2, 1, 1]),
        },
        tolerance=5e-4,
    ),
    Family(
        "qwen3_5_long",
        "Qwen3_5Text",
        {
            **DELTA_NET,
            "num_hidden_layers": 4,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "head_dim": 32,
            "attention_bias": True,
        },
        prompt_len=150,
        max_model_len=256,
        tolerance=5e-4,
    ),
    Family(
        "qwen3_5_moe",
        "Qwen3_5MoeText",
        {**DELTA_NET, **SHARED, "num_hidden_layers": 4},
        tolerance=5e-4,
    ),
    Family(
        "qwen3_next",
        "Qwen3Next",
        {
            **DELTA_NET,
            **SHARED,
            "num_hidden_layers": 5,
            "mlp_only_layers": [1],
            "head_dim": 32,
            "linear_conv_kernel_dim": 3,
        },
        tolerance=5e-4,
    ),
    Family(
        "lfm2",
        "Lfm2",
        {
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": False,
        },
    ),
    Family(
        "lfm2_adjusted",
        "Lfm2",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "conv", "full_attention", "full_attention"],
            "conv_L_cache": 4,
            "conv_bias": True,
            "block_multiple_of": 32,
            "block_ffn_dim_multiplier": 1.3,
            "tie_word_embeddings": True,
        },
    ),
    Family(
        "lfm2_moe",
        "Lfm2Moe",
        {
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 1,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "routed_scaling_factor": 1.5,
            "tie_word_embeddings": False,
        },
    ),
    Family("granitemoeshared", "GraniteMoeShared", {**GRANITE, "shared_intermediate_size": 40}),
    Family(
        "granitemoehybrid",
        "GraniteMoeHybrid",
        {
            **GRANITE,
            **MAMBA2,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "shared_intermediate_size": 40,
            "attention_bias": True,
            "mamba_proj_bias": True,
            "time_step_limit": [0.4, 1.3],
            "use_cache": False,  # with a cache transformers holds the limits in prompts alone
        },
        tolerance=5e-4,
    ),
    Family(
        "granitemoehybrid_dense",
        "GraniteMoeHybrid",
        {
            **MAMBA2,
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention"] * 2 + ["full_attention", "linear_attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 80,
            "position_embedding_type": "rope",
            "mamba_n_groups": 1,
            "mamba_conv_bias": False,
            "mamba_d_conv": 3,
        },
        prompt_len=150,
        max_model_len=256,
        tolerance=5e-4,
    ),
    Family(
        "nemotron_h",
        "NemotronH",
        {
            **NEMOTRON,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
            "mlp_bias": True,
            "use_bias": True,
        },
        tolerance=5e-4,
    ),
    Family(
        "nemotron_h_moe",
        "NemotronH",
        {
            **NEMOTRON,
            "layers_block_type": ["moe", "linear_attention", "full_attention", "linear_attention"],
            "n_routed_experts": 6,
            "moe_intermediate_size": 40,
            "moe_shared_expert_intermediate_size": 48,
            "routed_scaling_factor": 1.5,
            "use_conv_bias": False,
        },
        tolerance=5e-4,
    ),
    Family(
        "nemotron_h_latent",
        "NemotronH",
        {
            **NEMOTRON,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "moe_latent_size": 24,
            "moe_intermediate_size": 40,
            "moe_shared_expert_intermediate_size": 48,
        },
        tolerance=5e-4,
    ),
]
