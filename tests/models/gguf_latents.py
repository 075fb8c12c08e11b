"""Tensors of models with latent attention as llama.cpp's converter writes them (deepseek.py)."""

import re
from typing import Any

from torch import Tensor

DEEPSEEK = ("deepseek2",)

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
}
_PARTS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
}
for _matrix in ("gate", "up", "down"):
    _PARTS[f"mlp.{_matrix}_proj.weight"] = f"ffn_{_matrix}.weight"
    _PARTS[f"mlp.experts.{_matrix}_proj.weight"] = f"ffn_{_matrix}_exps.weight"
    _PARTS[f"mlp.shared_experts.{_matrix}_proj.weight"] = f"ffn_{_matrix}_shexp.weight"


def keys_of(config: Any, *, apart: bool) -> dict[str, int | float | bool]:
    """Under the architecture's prefix. apart: as files have it since 2025."""
    rope_dim, rank = config.qk_rope_head_dim, config.kv_lora_rank
    key_dim = config.qk_nope_head_dim + rope_dim
    found: dict[str, int | float | bool | None] = {
        "rope.dimension_count": rope_dim,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": rank,
        "attention.head_count_kv": 1 if apart else config.num_attention_heads,
        "attention.key_length": rank + rope_dim if apart else key_dim,
        "attention.value_length": rank if apart else config.v_head_dim,
        "attention.key_length_mla": key_dim if apart else None,
        "attention.value_length_mla": config.v_head_dim if apart else None,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob or None,
        "leading_dense_block_count": getattr(config, "first_k_dense_replace", 1),
    }
    return {key: value for key, value in found.items() if value is not None}


def converted(config: Any, name: str, tensor: Tensor, *, apart: bool) -> dict[str, Tensor]:
    """A tensor of a Hugging Face directory as the tensors of the file."""
    if name in _TOP:
        return {_TOP[name]: tensor}
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    assert match is not None, name
    layer, part = f"blk.{match[1]}.", match[2]
    if part == "self_attn.kv_b_proj.weight" and apart:
        keys, values = tensor.unflatten(0, (config.num_attention_heads, -1)).split(
            [config.qk_nope_head_dim, config.v_head_dim], dim=1
        )
        return {f"{layer}attn_k_b.weight": keys.mT, f"{layer}attn_v_b.weight": values}
    return {layer + _PARTS[part]: tensor}
