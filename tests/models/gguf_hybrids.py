"""Tensors of models with states as llama.cpp's converter writes them (qwen.py and lfm2.py)."""

import re
from typing import Any

import torch
from torch import Tensor

QWEN = ("qwen3next", "qwen35", "qwen35moe")
LFM2 = ("lfm2", "lfm2moe")

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
    "model.embedding_norm.weight": "token_embd_norm.weight",
}
_PARTS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_ba.weight": "ssm_ba.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.o_proj.bias": "attn_output.bias",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "operator_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "self_attn.out_proj.weight": "attn_output.weight",
    "self_attn.q_layernorm.weight": "attn_q_norm.weight",
    "self_attn.k_layernorm.weight": "attn_k_norm.weight",
    "conv.conv.weight": "shortconv.conv.weight",
    "conv.conv.bias": "shortconv.conv.bias",
    "conv.in_proj.weight": "shortconv.in_proj.weight",
    "conv.in_proj.bias": "shortconv.in_proj.bias",
    "conv.out_proj.weight": "shortconv.out_proj.weight",
    "conv.out_proj.bias": "shortconv.out_proj.bias",
    "feed_forward.gate.weight": "ffn_gate_inp.weight",
    "feed_forward.expert_bias": "exp_probs_b.bias",
    "feed_forward.w1.weight": "ffn_gate.weight",
    "feed_forward.w3.weight": "ffn_up.weight",
    "feed_forward.w2.weight": "ffn_down.weight",
}
for _kind in ("weight", "bias"):
    for _letter in "qkv":
        _PARTS[f"self_attn.{_letter}_proj.{_kind}"] = f"attn_{_letter}.{_kind}"
for _matrix in ("gate", "up", "down"):
    _PARTS[f"mlp.{_matrix}_proj.weight"] = f"ffn_{_matrix}.weight"
    _PARTS[f"mlp.experts.{_matrix}_proj.weight"] = f"ffn_{_matrix}_exps.weight"
    _PARTS[f"feed_forward.experts.{_matrix}_proj.weight"] = f"ffn_{_matrix}_exps.weight"
    _PARTS[f"mlp.shared_expert.{_matrix}_proj.weight"] = f"ffn_{_matrix}_shexp.weight"


def converted(architecture: str, config: Any, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of a Hugging Face directory as the tensors of the file."""
    if name in _TOP:
        return {_TOP[name]: tensor + 1 if name == "model.norm.weight" else tensor}
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    assert match is not None, name
    layer, part = f"blk.{match[1]}.", match[2]
    if architecture in LFM2:
        return {layer + _PARTS[part]: tensor.squeeze(1) if part == "conv.conv.weight" else tensor}
    if "linear_attn." in part and architecture != "qwen3next":
        tensor = _values_in_turn(config, part, tensor)
    if part == "linear_attn.in_proj_qkvz.weight":
        qkv, gate = _qkv_and_gate(config, tensor)
        return {f"{layer}attn_qkv.weight": qkv, f"{layer}attn_gate.weight": gate}
    if part == "linear_attn.A_log":
        tensor = -torch.exp(tensor)
    elif part.endswith(("conv1d.weight", "shared_expert_gate.weight")):
        tensor = tensor.squeeze()
    elif part.endswith("norm.weight") and not part.startswith("linear_attn"):
        tensor = tensor + 1
    return {layer + _PARTS[part]: tensor}


def _qkv_and_gate(config: Any, tensor: Tensor) -> tuple[Tensor, Tensor]:
    heads, dim = config.linear_num_key_heads, config.linear_key_head_dim
    values = config.linear_num_value_heads // heads * config.linear_value_head_dim
    q, k, v, z = tensor.view(heads, -1, tensor.shape[1]).split([dim, dim, values, values], dim=1)
    return torch.cat([x.flatten(0, 1) for x in (q, k, v)]), z.flatten(0, 1)


def _values_in_turn(config: Any, part: str, tensor: Tensor) -> Tensor:
    """Value heads of one key head apart: the first of all key heads, then the second of all."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    if keys == values:
        return tensor

    def moved(x: Tensor, size: int) -> Tensor:
        return x.unflatten(0, (keys, values // keys, size)).transpose(0, 1).flatten(0, 2)

    dim, before = config.linear_value_head_dim, 2 * keys * config.linear_key_head_dim
    if part.split(".")[1] in ("in_proj_qkv", "conv1d"):
        return torch.cat([tensor[:before], moved(tensor[before:], dim)])
    if "in_proj_z" in part:
        return moved(tensor, dim)
    if "out_proj" in part:
        return moved(tensor.T, dim).T
    if part.split(".")[1] in ("in_proj_a", "in_proj_b", "A_log", "dt_bias"):
        return moved(tensor, 1)
    return tensor
