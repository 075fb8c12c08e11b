"""Published models that can be planned for by name, without their files.

Shapes are those of the models' own config.json. Tensors are made up from the same descriptions that
loading uses, in bfloat16, but for experts that were published in four bits alone.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loire.checkpoint import huggingface_config
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo, TokenizerSource
from loire.checkpoint.formats import BF16, MXFP4
from loire.checkpoint.weights import Filters, Vector, Weight, each

Config = Mapping[str, Any]
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "max_position_embeddings")  # fmt: skip
_LLAMA2 = {"model_type": "llama", "vocab_size": 32000}
_LLAMA3 = {"model_type": "llama", "vocab_size": 128256, "rope_theta": 500000.0}
_MISTRAL = {"model_type": "mistral", "head_dim": 128, "sliding_window": None}
_TEKKEN = {**_MISTRAL, "vocab_size": 131072}
_MINISTRAL = {**_TEKKEN, "model_type": "ministral3"}
_QWEN2 = {"model_type": "qwen2", "vocab_size": 152064}
_SMALL_QWEN2 = {"model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": True}
_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128}
_SMALL_QWEN3 = {**_QWEN3, "tie_word_embeddings": True}
_QWEN3_MOE = {**_QWEN3, "model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8}
_QWEN3_NEXT = {**_QWEN3, "model_type": "qwen3_next", "head_dim": 256, "num_experts": 512}
_QWEN3_5 = {"model_type": "qwen3_5_text", "vocab_size": 248320, "head_dim": 256}
_SMALL_QWEN3_5 = {**_QWEN3_5, "tie_word_embeddings": True, "linear_num_value_heads": 16}
_QWEN3_5_MOE = {**_QWEN3_5, "model_type": "qwen3_5_moe_text"}
_GEMMA2 = {"model_type": "gemma2", "vocab_size": 256000, "head_dim": 256}
_GEMMA3 = {"model_type": "gemma3_text", "vocab_size": 262208, "head_dim": 256}
_LARGE_GEMMA3 = {**_GEMMA3, "sliding_window": 1024}
_SMALL_GEMMA3 = {**_GEMMA3, "vocab_size": 262144, "sliding_window": 512}
_GEMMA4 = {"model_type": "gemma4_text", "vocab_size": 262144, "head_dim": 256,
           "global_head_dim": 512}  # fmt: skip
_LARGE_GEMMA4 = {**_GEMMA4, "sliding_window": 1024, "attention_k_eq_v": True,
                 "hidden_size_per_layer_input": 0}  # fmt: skip
_PHI3 = {"model_type": "phi3"}
_GRANITE = {"model_type": "granite", "vocab_size": 49159, "tie_word_embeddings": True}
_GRANITE4 = {"model_type": "granitemoehybrid", "vocab_size": 100352, "tie_word_embeddings": True,
             "mamba_d_state": 128, "num_local_experts": 0,
             "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4}  # fmt: skip
_NEMOTRON = {"model_type": "nemotron_h", "vocab_size": 131072, "head_dim": 128}
_GPT_OSS = {"model_type": "gpt_oss", "vocab_size": 201088, "head_dim": 64,
            "sliding_window": 128, "num_experts_per_tok": 4}  # fmt: skip
_MIXTRAL = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0,
         "original_max_position_embeddings": 4096}  # fmt: skip
_DEEPSEEK2 = {"model_type": "deepseek_v2", "vocab_size": 102400, "first_k_dense_replace": 1,
              "num_experts_per_tok": 6, "rope_parameters": _YARN}  # fmt: skip
_GLM4 = {"model_type": "glm4", "vocab_size": 151552, "attention_bias": False}
_EXAONE4 = {"model_type": "exaone4", "vocab_size": 102400, "rope_theta": 1e6}

_TABLE: tuple[tuple[str, Config, tuple[int, ...], Config], ...] = (
    ("llama-2-7b", _LLAMA2, (4096, 11008, 32, 32, 32, 4096), {}),
    ("llama-2-13b", _LLAMA2, (5120, 13824, 40, 40, 40, 4096), {}),
    ("llama-3-8b", _LLAMA3, (4096, 14336, 32, 32, 8, 8192), {}),
    ("llama-3-70b", _LLAMA3, (8192, 28672, 80, 64, 8, 8192), {}),
    ("llama-3.1-8b", _LLAMA3, (4096, 14336, 32, 32, 8, 131072), {}),
    ("llama-3.1-70b", _LLAMA3, (8192, 28672, 80, 64, 8, 131072), {}),
    ("llama-3.1-405b", _LLAMA3, (16384, 53248, 126, 128, 8, 131072), {}),
    ("llama-3.2-1b", _LLAMA3, (2048, 8192, 16, 32, 8, 131072), {"tie_word_embeddings": True}),
    ("llama-3.2-3b", _LLAMA3, (3072, 8192, 28, 24, 8, 131072), {"tie_word_embeddings": True}),
    ("llama-3.3-70b", _LLAMA3, (8192, 28672, 80, 64, 8, 131072), {}),
    ("mistral-7b", _MISTRAL, (4096, 14336, 32, 32, 8, 32768), {"vocab_size": 32768}),
    ("codestral-22b", _MISTRAL, (6144, 16384, 56, 48, 8, 32768), {"vocab_size": 32768}),
    ("mistral-nemo-12b", _TEKKEN, (5120, 14336, 40, 32, 8, 131072), {}),
    ("mistral-small-24b", _TEKKEN, (5120, 32768, 40, 32, 8, 131072), {}),
    ("ministral-3-3b", _MINISTRAL, (3072, 9216, 26, 32, 8, 262144), {"tie_word_embeddings": True}),
    ("ministral-3-8b", _MINISTRAL, (4096, 14336, 34, 32, 8, 262144), {}),
    ("ministral-3-14b", _MINISTRAL, (5120, 16384, 40, 32, 8, 262144), {}),
    ("mixtral-8x7b", _MIXTRAL, (4096, 14336, 32, 32, 8, 32768), {"vocab_size": 32000}),
    ("mixtral-8x22b", _MIXTRAL, (6144, 16384, 56, 48, 8, 65536), {"vocab_size": 32768}),
    ("gpt-oss-20b", _GPT_OSS, (2880, 2880, 24, 64, 8, 131072), {"num_local_experts": 32}),
    ("gpt-oss-120b", _GPT_OSS, (2880, 2880, 36, 64, 8, 131072), {"num_local_experts": 128}),
    ("deepseek-v2-lite", _DEEPSEEK2, (2048, 10944, 27, 16, 16, 163840),
     {"moe_intermediate_size": 1408, "q_lora_rank": None}),
    ("deepseek-v2", _DEEPSEEK2, (5120, 12288, 60, 128, 128, 163840),
     {"moe_intermediate_size": 1536, "n_routed_experts": 160, "n_group": 8, "topk_group": 3,
      "topk_method": "group_limited_greedy"}),
    ("deepseek-v3", {"model_type": "deepseek_v3"}, (7168, 18432, 61, 128, 128, 163840),
     {"vocab_size": 129280, "rope_parameters": _YARN}),
    ("glm-4.7-flash", {"model_type": "glm4_moe_lite"}, (2048, 10240, 47, 20, 20, 202752),
     {"vocab_size": 154880, "rope_theta": 1e6}),
    ("glm-4-9b", _GLM4, (4096, 13696, 40, 32, 2, 32768), {}),
    ("glm-4-32b", _GLM4, (6144, 23040, 61, 48, 2, 32768), {}),
    ("exaone-4.0-1.2b", _EXAONE4, (2048, 4096, 30, 32, 8, 65536),
     {"head_dim": 64, "sliding_window": None, "tie_word_embeddings": True}),
    ("exaone-4.0-32b", _EXAONE4, (5120, 27392, 64, 40, 8, 131072), {"head_dim": 128}),
    ("qwen2.5-0.5b", _SMALL_QWEN2, (896, 4864, 24, 14, 2, 32768), {}),
    ("qwen2.5-1.5b", _SMALL_QWEN2, (1536, 8960, 28, 12, 2, 32768), {}),
    ("qwen2.5-3b", _SMALL_QWEN2, (2048, 11008, 36, 16, 2, 32768), {}),
    ("qwen2.5-7b", _QWEN2, (3584, 18944, 28, 28, 4, 32768), {}),
    ("qwen2.5-14b", _QWEN2, (5120, 13824, 48, 40, 8, 32768), {}),
    ("qwen2.5-32b", _QWEN2, (5120, 27648, 64, 40, 8, 32768), {}),
    ("qwen2.5-72b", _QWEN2, (8192, 29568, 80, 64, 8, 32768), {}),
    ("qwen3-0.6b", _SMALL_QWEN3, (1024, 3072, 28, 16, 8, 40960), {}),
    ("qwen3-1.7b", _SMALL_QWEN3, (2048, 6144, 28, 16, 8, 40960), {}),
    ("qwen3-4b", _SMALL_QWEN3, (2560, 9728, 36, 32, 8, 40960), {}),
    ("qwen3-8b", _QWEN3, (4096, 12288, 36, 32, 8, 40960), {}),
    ("qwen3-14b", _QWEN3, (5120, 17408, 40, 40, 8, 40960), {}),
    ("qwen3-32b", _QWEN3, (5120, 25600, 64, 64, 8, 40960), {}),
    ("qwen3-30b-a3b", _QWEN3_MOE, (2048, 6144, 48, 32, 4, 40960), {"moe_intermediate_size": 768}),
    ("qwen3-coder-30b-a3b", _QWEN3_MOE, (2048, 6144, 48, 32, 4, 262144),
     {"moe_intermediate_size": 768}),
    ("qwen3-235b-a22b", _QWEN3_MOE, (4096, 12288, 94, 64, 4, 40960),
     {"moe_intermediate_size": 1536}),
    ("qwen3-next-80b-a3b", _QWEN3_NEXT, (2048, 5120, 48, 16, 2, 262144), {}),
    ("qwen3.5-0.8b", _SMALL_QWEN3_5, (1024, 3584, 24, 8, 2, 262144), {}),
    ("qwen3.5-2b", _SMALL_QWEN3_5, (2048, 6144, 24, 8, 2, 262144), {}),
    ("qwen3.5-4b", _QWEN3_5, (2560, 9216, 32, 16, 4, 262144), {"tie_word_embeddings": True}),
    ("qwen3.5-9b", _QWEN3_5, (4096, 12288, 32, 16, 4, 262144), {}),
    ("qwen3.5-27b", _QWEN3_5, (5120, 17408, 64, 24, 4, 262144), {"linear_num_value_heads": 48}),
    ("qwen3.6-27b", _QWEN3_5, (5120, 17408, 64, 24, 4, 262144), {"linear_num_value_heads": 48}),
    ("qwen3.5-35b-a3b", _QWEN3_5_MOE, (2048, 5120, 40, 16, 2, 262144), {}),
    ("qwen3.6-35b-a3b", _QWEN3_5_MOE, (2048, 5120, 40, 16, 2, 262144), {}),
    ("gemma-2-2b", _GEMMA2, (2304, 9216, 26, 8, 4, 8192), {}),
    ("gemma-2-9b", _GEMMA2, (3584, 14336, 42, 16, 8, 8192), {}),
    ("gemma-2-27b", _GEMMA2, (4608, 36864, 46, 32, 16, 8192), {"head_dim": 128}),
    ("gemma-3-270m", _SMALL_GEMMA3, (640, 2048, 18, 4, 1, 32768), {}),
    ("gemma-3-1b", _SMALL_GEMMA3, (1152, 6912, 26, 4, 1, 32768), {}),
    ("gemma-3-4b", _LARGE_GEMMA3, (2560, 10240, 34, 8, 4, 131072), {}),
    ("gemma-3-12b", _LARGE_GEMMA3, (3840, 15360, 48, 16, 8, 131072), {}),
    ("gemma-3-27b", _LARGE_GEMMA3, (5376, 21504, 62, 32, 16, 131072), {"head_dim": 128}),
    ("gemma-4-e2b", _GEMMA4, (1536, 6144, 35, 8, 1, 131072),
     {"num_kv_shared_layers": 20, "use_double_wide_mlp": True}),
    ("gemma-4-e4b", _GEMMA4, (2560, 10240, 42, 8, 2, 131072), {"num_kv_shared_layers": 18}),
    ("gemma-4-26b-a4b", _LARGE_GEMMA4, (2816, 2112, 30, 16, 8, 262144),
     {"num_global_key_value_heads": 2, "enable_moe_block": True, "num_experts": 128,
      "top_k_experts": 8, "moe_intermediate_size": 704}),
    ("gemma-4-31b", _LARGE_GEMMA4, (5376, 21504, 60, 32, 16, 262144),
     {"num_global_key_value_heads": 4}),
    ("phi-3-mini", _PHI3, (3072, 8192, 32, 32, 32, 4096), {"vocab_size": 32064}),
    ("phi-3.5-mini", _PHI3, (3072, 8192, 32, 32, 32, 131072), {"vocab_size": 32064}),
    ("phi-4", _PHI3, (5120, 17920, 40, 40, 10, 16384), {"vocab_size": 100352}),
    ("phi-4-mini", _PHI3, (3072, 8192, 32, 24, 8, 131072),
     {"vocab_size": 200064, "tie_word_embeddings": True}),
    ("smollm3-3b", {"model_type": "smollm3"}, (2048, 11008, 36, 16, 4, 65536),
     {"vocab_size": 128256}),
    ("granite-3.3-2b", _GRANITE, (2048, 8192, 40, 32, 8, 131072), {}),
    ("granite-3.3-8b", _GRANITE, (4096, 12800, 40, 32, 8, 131072), {}),
    ("granite-4.0-h-micro", _GRANITE4, (2048, 8192, 40, 32, 8, 131072),
     {"shared_intermediate_size": 8192, "mamba_n_heads": 64}),
    ("granite-4.0-h-tiny", _GRANITE4, (1536, 512, 40, 12, 4, 131072),
     {"shared_intermediate_size": 1024, "mamba_n_heads": 48, "num_local_experts": 64,
      "num_experts_per_tok": 6}),
    ("granite-4.0-h-small", _GRANITE4, (4096, 768, 40, 32, 8, 131072),
     {"shared_intermediate_size": 1536, "num_local_experts": 72, "num_experts_per_tok": 10}),
    ("nemotron-nano-9b-v2", _NEMOTRON, (4480, 15680, 56, 40, 8, 131072),
     {"mamba_head_dim": 80,
      "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"}),
    ("nemotron-3-nano-30b-a3b", _NEMOTRON, (2688, 1856, 52, 32, 2, 262144),
     {"mamba_num_heads": 64, "n_routed_experts": 128, "num_experts_per_tok": 6,
      "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712,
      "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"}),
    ("seed-oss-36b", {"model_type": "seed_oss"}, (5120, 27648, 64, 80, 8, 524288),
     {"vocab_size": 155136}),
)  # fmt: skip
PUBLISHED: Mapping[str, Config] = {
    name: {**family, **dict(zip(_SHAPE, shape, strict=True)), **own}
    for name, family, shape, own in _TABLE
}
"""What matters of config.json, by the model's name."""


def published_model(name: str) -> Checkpoint:
    """A model of PUBLISHED as if its files were here."""
    description = huggingface_config.describe(PUBLISHED[name], name)
    tensors = {
        tensor.name: tensor
        for weight in each(description.weights())
        for tensor in _tensors(weight, Path(name))
    }
    return Checkpoint(
        path=Path(name), description=description, tensors=tensors, tokenizer=TokenizerSource()
    )


def _tensors(weight: Weight, path: Path) -> list[TensorInfo]:
    def tensor(name: str, shape: tuple[int, ...]) -> TensorInfo:
        is_short = path.name.startswith("gpt-oss") and re.search(r"\.experts\..*\.weight", name)
        fmt = MXFP4 if is_short else BF16
        num_bytes = fmt.num_bytes(math.prod(shape))
        return TensorInfo(
            name=name, shape=shape, format=fmt, path=path, offset=0, num_bytes=num_bytes
        )

    if isinstance(weight, Filters):
        return [tensor(weight.name, (weight.channels, weight.width))]
    if isinstance(weight, Vector):
        return [tensor(weight.name, (weight.size,))]
    found = [tensor(f"{weight.name}.weight", (weight.outputs, weight.inputs))]
    if weight.bias:
        found.append(tensor(f"{weight.name}.bias", (weight.outputs,)))
    return found
