"""The same weights as a GGUF file and as a Hugging Face directory are the same model.

The files are written as llama.cpp's converter writes them: rows of queries and keys interleaved in
the Llama family, Gemma's +1 folded into its norms, Phi-3's projections fused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import gguf_mamba2
import numpy as np
import pytest
import torch
from families import FAMILIES, LONG, SHORT, rope
from gguf_hybrids import LFM2, QWEN, converted
from gguf_latents import DEEPSEEK, keys_of
from gguf_latents import converted as converted_latents
from torch import Tensor
from transformers import PreTrainedModel

from loire.checkpoint.open import open_checkpoint
from loire.kernels.reference import ReferenceBackend
from loire.models.loading import load_decoder
from support.paged_driver import CPU, DrivenSequence, PagedDriver

TOKENS = [3 + (11 * i * i + 5 * i) % 125 for i in range(70)]

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "self_attn.sinks": "attn_sinks",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
LLAMA_NORMS = {"post_attention_layernorm": "ffn_norm"}
NAMED_NORMS = {"post_attention_layernorm": "post_attention_norm"}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
NORMS = {
    "gemma2": GEMMA_NORMS,
    "gemma3": GEMMA_NORMS,
    "olmo2": GEMMA_NORMS,
    "exaone4": GEMMA_NORMS,
    "glm4": {
        "post_self_attn_layernorm": "post_attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "post_mlp_layernorm": "post_ffw_norm",
    },
    "seed_oss": NAMED_NORMS,
    "gpt-oss": NAMED_NORMS,
}
INTERLEAVED = ("llama", "mistral3", "smollm3", "granite", "granitemoe")
"""Architectures that the converter writes as it writes Llama."""


@dataclass(frozen=True)
class Case:
    family: str
    architecture: str
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys under the architecture's prefix."""
    tensors: dict[str, list[float]] = field(default_factory=dict)
    max_model_len: int = 128
    settings: dict[str, Any] = field(default_factory=dict)
    """What the family must have other than in its own tests."""


DELTA_NET: dict[str, float | int | str] = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 96,
    "full_attention_interval": 4,
}
SHARED: dict[str, float | int | str] = {
    "expert_count": 6,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 48,
}
MAMBA2: dict[str, float | int | str] = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 24,
    "ssm.group_count": 2,
    "ssm.inner_size": 128,
    "ssm.time_step_rank": 8,
}
NEMOTRON: dict[str, float | int | str] = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.inner_size": 144,
    "ssm.time_step_rank": 6,
    "rope.dimension_count": 24,
}
NEMOTRON_EXPERTS: dict[str, float | int | str | bool] = {
    **NEMOTRON,
    "expert_feed_forward_length": 40,
    "expert_shared_feed_forward_length": 48,
    "expert_shared_count": 1,
    "expert_group_count": 1,
}
YARN: dict[str, float | int | str] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
LITE: dict[str, Any] = {
    "attention_bias": False,
    "rope_parameters": rope(
        "yarn", factor=4.0, original_max_position_embeddings=64, mscale=0.707, mscale_all_dim=0.707
    ),
}
"""Of DeepSeek-V2-Lite, as its files hold it."""
CASES = [
    Case("llama_biases", "llama"),
    Case("llama_head_dim_tied", "llama", {"rope.dimension_count": 24}),
    Case("llama_linear", "llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}),
    Case("llama_yarn", "llama", {
        **YARN,
    }),
    Case("qwen2", "qwen2"),
    Case("qwen3", "qwen3"),
    Case("gemma", "gemma"),
    Case(
        "gemma2",
        "gemma2",
        {
            "attention.sliding_window": 20,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 4.0,
        },
        settings={"query_pre_attn_scalar": 24},  # the files do not hold it; it is head_dim then
    ),
    Case("gemma3_every_sixth", "gemma3", {
        "attention.sliding_window": 20,
        "rope.freq_base": 1e6,
    }),
    Case("mixtral", "llama", {"expert_count": 5, "expert_used_count": 2,
                              "attention.sliding_window": 24, "rope.freq_base": 1e6}),
    Case("qwen3_moe", "qwen3moe", {"expert_count": 8, "expert_used_count": 3,
                                   "expert_feed_forward_length": 48}),
    Case("ministral3", "mistral3", {
        "attention.sliding_window": 30,
        "attention.temperature_scale": 0.4,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
        "rope.scaling.yarn_beta_fast": 4.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_log_multiplier": 1.0,
    }),
    Case("smollm3", "smollm3", {"rope.freq_base": 2e6}),
    Case("granite", "granite", {
        "attention.scale": 0.4,
        "embedding_scale": 6.0,
        "residual_scale": 0.3,
        "logit_scale": 5.0,
    }),
    Case("granitemoe", "granitemoe", {
        "attention.scale": 0.4,
        "embedding_scale": 6.0,
        "residual_scale": 0.3,
        "logit_scale": 5.0,
        "expert_count": 6,
        "expert_used_count": 3,
    }),
    Case("granitemoeshared", "granitemoe", {
        "attention.scale": 0.4,
        "embedding_scale": 6.0,
        "residual_scale": 0.3,
        "logit_scale": 5.0,
        "expert_count": 6,
        "expert_used_count": 3,
        "expert_shared_feed_forward_length": 40,
    }),
    Case("granitemoehybrid", "granitehybrid", {
        **MAMBA2,
        "attention.scale": 0.4,
        "embedding_scale": 6.0,
        "residual_scale": 0.3,
        "logit_scale": 5.0,
        "expert_count": 6,
        "expert_used_count": 3,
        "expert_shared_feed_forward_length": 40,
        "rope.scaling.finetuned": False,
    }, settings={"time_step_limit": None}),  # which the files do not hold
    Case("granitemoehybrid_dense", "granitehybrid", {
        **MAMBA2,
        "ssm.conv_kernel": 3,
        "ssm.group_count": 1,
        "attention.scale": 1.0,
        "feed_forward_length": 80,
        "rope.scaling.finetuned": True,
    }, max_model_len=160),
    Case("nemotron_h", "nemotron_h", {**NEMOTRON, "feed_forward_length": [0, 96, 0, 96]}),
    Case("nemotron_h_moe", "nemotron_h_moe", {
        **NEMOTRON_EXPERTS,
        "feed_forward_length": [40, 0, 0, 0],
        "expert_count": 6,
        "expert_used_count": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": 1.5,
    }),
    Case("nemotron_h_latent", "nemotron_h_moe", {
        **NEMOTRON_EXPERTS,
        "feed_forward_length": [0, 40, 0, 40],
        "expert_count": 8,
        "expert_used_count": 3,
        "expert_weights_norm": False,
        "moe_latent_size": 24,
    }, settings={"n_group": 1, "topk_group": 1}),
    Case("olmo3", "olmo2", {"attention.sliding_window": 20, "rope.freq_base": 5e5}),
    Case("olmo3_stretched", "olmo2", {
        "attention.sliding_window": 20,
        "attention.sliding_window_pattern": [False, True, False],
        **YARN,
        "rope.scaling.yarn_beta_fast": 4.0,
    }),
    Case("olmoe", "olmoe", {"expert_count": 6, "expert_used_count": 2}),
    Case("seed_oss", "seed_oss"),
    Case(
        "gpt_oss",
        "gpt-oss",
        {
            "expert_count": 6,
            "expert_used_count": 3,
            "expert_feed_forward_length": 96,
            "attention.sliding_window": 20,
            "rope.freq_base": 150000.0,
            **YARN,
        },
        settings={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},  # which the files do not hold
    ),
    Case("qwen3_5_long", "qwen35", {**DELTA_NET, "ssm.group_count": 3, "ssm.time_step_rank": 3,
                                    "ssm.inner_size": 72, "rope.dimension_count": 8},
         max_model_len=160),
    Case("qwen3_5", "qwen35", {**DELTA_NET, "rope.dimension_count": 8},
         settings={"num_hidden_layers": 4, "layer_types": None}),
    Case("qwen3_5_moe", "qwen35moe", {**DELTA_NET, **SHARED, "rope.dimension_count": 64}),
    Case("qwen3_next", "qwen3next", {**DELTA_NET, **SHARED, "ssm.conv_kernel": 3,
                                     "rope.dimension_count": 8}),
    Case("lfm2", "lfm2", {"shortconv.l_cache": 3, "rope.freq_base": 1e6}),
    Case("lfm2_adjusted", "lfm2", {"shortconv.l_cache": 4, "rope.freq_base": 1e6,
                                   "feed_forward_length": 96}),
    Case("lfm2_moe", "lfm2moe", {"shortconv.l_cache": 3, "rope.freq_base": 1e6,
                                 "expert_count": 6, "expert_used_count": 2,
                                 "expert_feed_forward_length": 48},
         settings={"routed_scaling_factor": 1.0}),
    Case("deepseek_v2", "deepseek2"),
    Case("deepseek_v2_lite", "deepseek2", {
        **YARN,
        "rope.scaling.yarn_log_multiplier": 0.0707,
    }, settings=LITE),
    Case("deepseek_v2_lite", "deepseek2", {  # before keys and values were put apart
        "attention.key_length": 28,
        "attention.value_length": 28,
        **YARN,
        "rope.scaling.yarn_log_multiplier": 0.0707,
    }, settings=LITE),
    Case("deepseek_v3", "deepseek2", {
        "expert_gating_func": 2,
        **YARN,
        "rope.scaling.yarn_log_multiplier": 0.1,
    }, settings={"attention_bias": False}),
    Case("glm4_moe_lite", "deepseek2"),
    Case("glm4", "glm4", {"rope.dimension_count": 12}),
    Case("glm4_whole", "glm4"),
    Case("exaone4", "exaone4", {
        "attention.sliding_window": 20,
        "attention.sliding_window_pattern": [True, True, True, False, True],
    }),
    Case("exaone4_plain", "exaone4", settings={"rope_parameters": rope("default")}),
    Case("phi3", "phi3"),
    Case(
        "phi3_longrope_short",
        "phi3",
        {"rope.scaling.original_context_length": 128},
        {"rope_factors_short.weight": SHORT, "rope_factors_long.weight": LONG},
    ),
    Case(
        "phi3_longrope_long",
        "phi3",
        {"rope.scaling.original_context_length": 32, "rope.dimension_count": 12},
        {"rope_factors_short.weight": SHORT[:6], "rope_factors_long.weight": LONG[:6]},
    ),
]  # fmt: skip


def gguf_name(name: str, architecture: str) -> str:
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in top:
        return top[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    assert match is not None, name
    norms = NORMS.get(architecture, LLAMA_NORMS)
    return f"blk.{match[1]}.{(PARTS | norms)[match[2]]}.{match[3]}"


def interleaved(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from halves to pairs, as the converter does for Llama."""
    rows = torch.arange(len(tensor)).view(num_heads, 2, -1).transpose(1, 2).flatten()
    return tensor[rows]


def gpt_oss_apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts with outputs first, gate and up by themselves, and names that end as all do."""
    found = {}
    for name, tensor in state.items():
        stem, ending = re.sub(r"_proj(_bias)?$", "", name), "weight"
        if name.endswith("_bias"):
            ending = "bias"
        elif ".experts." in name:
            tensor = tensor.transpose(1, 2)
        if ".experts.gate_up_proj" in name:
            stem = stem.removesuffix("gate_up")
            found[f"{stem}gate_proj.{ending}"] = tensor[:, 0::2]
            found[f"{stem}up_proj.{ending}"] = tensor[:, 1::2]
        elif ".experts." in name:
            found[f"{stem}_proj.{ending}"] = tensor
        else:
            found[f"{name}.weight" if name.endswith("sinks") else name] = tensor
    return found


def experts_apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gates and inner matrices of experts, one tensor in transformers, as one each."""
    if any(name.endswith("sinks") for name in state):
        return gpt_oss_apart(state)
    found = {}
    for name, tensor in state.items():
        name = name.replace("block_sparse_moe.router", "mlp.gate")
        name = name.replace("block_sparse_moe", "mlp")
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            stem = name.removesuffix("gate_up_proj")
            found |= {f"{stem}gate_proj.weight": gate, f"{stem}up_proj.weight": up}
        else:
            found[f"{name}.weight" if name.endswith("experts.down_proj") else name] = tensor
    return found


def write(path: Path, model: PreTrainedModel, case: Case) -> None:
    config: Any = model.config
    writer = gguf.GGUFWriter(path, case.architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    if "feed_forward_length" not in case.extra and hasattr(config, "intermediate_size"):
        writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    kv_heads = config.num_key_value_heads
    if case.architecture in LFM2:
        kv_heads = [0 if kind == "conv" else kv_heads for kind in config.layer_types]
    apart = "attention.key_length" not in case.extra
    extra = dict(case.extra)
    if case.architecture in gguf_mamba2.ARCHITECTURES:
        kv_heads = [kv_heads if kind == "full_attention" else 0 for kind in config.layer_types]
    if case.architecture in DEEPSEEK:
        extra |= keys_of(config, apart=apart)
    else:
        writer.add_head_count_kv(kv_heads)
    keys = ("rms_norm_eps", "norm_eps", "layer_norm_epsilon")
    [eps] = [getattr(config, key) for key in keys if hasattr(config, key)]
    writer.add_layer_norm_rms_eps(eps)
    if case.architecture not in DEEPSEEK and getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for key, value in extra.items():
        add: dict[type, Callable[[str, Any], None]] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        add[type(value)](f"{case.architecture}.{key}", value)
    state = dict(model.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    if case.architecture in gguf_mamba2.ARCHITECTURES or case.family == "granitemoeshared":
        for name, tensor in state.items():
            for own, changed in gguf_mamba2.converted(config, name, tensor):
                writer.add_tensor(own, changed.contiguous().numpy())
        state = {}
    for name, tensor in experts_apart(state).items():
        if case.architecture in QWEN + LFM2:
            for own, changed in converted(case.architecture, config, name, tensor).items():
                writer.add_tensor(own, changed.contiguous().numpy())
            continue
        if case.architecture in DEEPSEEK:
            for own, changed in converted_latents(config, name, tensor, apart=apart).items():
                writer.add_tensor(own, changed.contiguous().numpy())
            continue
        if case.architecture in INTERLEAVED and "q_proj" in name:
            tensor = interleaved(tensor, config.num_attention_heads)
        if case.architecture in INTERLEAVED and "k_proj" in name:
            tensor = interleaved(tensor, config.num_key_value_heads)
        if case.architecture.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        writer.add_tensor(gguf_name(name, case.architecture), tensor.contiguous().numpy())
    for name, values in case.tensors.items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path: Path, max_model_len: int) -> Tensor:
    decoder = load_decoder(
        open_checkpoint(path),
        dtype=torch.float32,
        device=CPU,
        backend=ReferenceBackend(),
        max_model_len=max_model_len,
    )
    return PagedDriver(decoder).step([(DrivenSequence(), TOKENS)])[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.family))
def test_both_formats_are_the_same_model(tmp_path: Path, case: Case) -> None:
    [family] = [family for family in FAMILIES if family.name == case.family]
    model = replace(family, settings={**family.settings, **case.settings}).save(
        tmp_path / "directory"
    )
    write(tmp_path / "model.gguf", model, case)
    from_directory = logits(tmp_path / "directory", case.max_model_len)
    from_gguf = logits(tmp_path / "model.gguf", case.max_model_len)
    # Not to the bit: +1 is added before the file is written, factors are stored in float32.
    bound = family.tolerance / 5 * float(from_directory.abs().max())
    torch.testing.assert_close(from_gguf, from_directory, rtol=0, atol=bound)
