"""Tensors of models with Mamba-2 as llama.cpp's converter writes them (mamba.py, granite.py and
nemotron.py)."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ARCHITECTURES = ("granitehybrid", "nemotron_h", "nemotron_h_moe")

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.embeddings.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
    "model.norm_f.weight": "output_norm.weight",
}
_PARTS = {
    "norm": "attn_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mixer.in_proj": "ssm_in",
    "mixer.conv1d": "ssm_conv1d",
    "mixer.dt": "ssm_dt",
    "mixer.norm": "ssm_norm",
    "mixer.out_proj": "ssm_out",
    "mixer.o_proj": "attn_output",
    "mixer.up_proj": "ffn_up",
    "mixer.down_proj": "ffn_down",
    "mixer.gate": "ffn_gate_inp",
    "mixer.gate.e_score_correction": "exp_probs_b",
    "mixer.shared_experts.up_proj": "ffn_up_shexp",
    "mixer.shared_experts.down_proj": "ffn_down_shexp",
    "mixer.fc1_latent_proj": "ffn_latent_down",
    "mixer.fc2_latent_proj": "ffn_latent_up",
    "block_sparse_moe.router": "ffn_gate_inp",
    **{f"mixer.{letter}_proj": f"attn_{letter}" for letter in "qkv"},
}
_COLUMNS = {"mixer.A_log": "ssm_a", "mixer.D": "ssm_d"}
_EXPERTS = {
    "block_sparse_moe.experts.down_proj": "ffn_down_exps",
    "mixer.experts.up_proj": "ffn_up_exps",
    "mixer.experts.down_proj": "ffn_down_exps",
}


def converted(config: Any, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of transformers' model as the tensors of the file."""
    if name in _TOP:
        yield _TOP[name], tensor
        return
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    assert match is not None, name
    layer = f"blk.{match[1]}."
    part = re.sub(r"^(mamba|self_attn)\.", "mixer.", match[2])
    part = part.replace("dt_bias", "dt.bias").replace("correction_bias", "correction.bias")
    if part in _COLUMNS:
        yield layer + _COLUMNS[part], (-torch.exp(tensor) if "A_log" in part else tensor)[:, None]
    elif part in _EXPERTS:
        yield f"{layer}{_EXPERTS[part]}.weight", tensor
    elif part == "block_sparse_moe.experts.gate_up_proj":
        for half, rows in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
            yield f"{layer}ffn_{half}_exps.weight", rows
    elif part.startswith("shared_mlp."):
        end = "_shexp" if config.num_local_experts else ""
        halves = {"gate": tensor[: len(tensor) // 2], "up": tensor[len(tensor) // 2 :]}
        for half, rows in (halves if "input" in part else {"down": tensor}).items():
            yield f"{layer}ffn_{half}{end}.weight", rows
    else:
        stem, _, ending = part.rpartition(".")
        if stem == "mixer.conv1d" and ending == "weight":
            tensor = tensor.squeeze()
        elif stem == "mixer.norm":
            groups = getattr(config, "n_groups", None) or config.mamba_n_groups
            tensor = tensor.view(groups, -1)
        elif stem in ("mixer.q_proj", "mixer.k_proj"):
            heads = config.num_attention_heads if "q" in stem else config.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        yield f"{layer}{_PARTS[stem]}.{ending}", tensor
