"""config.json of every family, against what transformers makes of the same file."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families.registry import BY_MODEL_TYPE
from loire.checkpoint.huggingface_config import describe
from loire.checkpoint.mixers import RopeDescription
from loire.models.rotary import inverse_frequencies
from support.layers import attention, mlp, windows

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + index / 10 for index in range(8)],
    "long_factor": [2.0 + index for index in range(8)],
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama null kv heads": {"model_type": "llama", "num_key_value_heads": None},
    "llama biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama head_dim": {"model_type": "llama", "head_dim": 32, "tie_word_embeddings": True},
    "llama 3.1, old keys": {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama 3.1, new keys": {"model_type": "llama", "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
    "llama linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama no original": {
        "model_type": "llama",
        "rope_scaling": {
            key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"
        },
    },
    "mistral": {"model_type": "mistral"},
    "mistral window": {"model_type": "mistral", "sliding_window": 16, "head_dim": 32},
    "codestral": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6},
    "glm4": {"model_type": "glm4"},
    "exaone4 no window": {
        "model_type": "exaone4",
        "sliding_window": None,
        "layer_types": ["full_attention"] * 8,
    },
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6, "eos_token_id": [3, 4]},
    "qwen2 window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 32,
        "max_window_layers": 3,
    },
    "qwen2 window default": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "max_window_layers": 3,
    },
    "qwen2 layer types": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"] * 4,
    },
    "qwen2 yarn": {"model_type": "qwen2", "rope_theta": 1e6, "rope_scaling": YARN},
    "qwen2 yarn mscale": {
        "model_type": "qwen2",
        "rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 20},
    },
    "qwen3": {"model_type": "qwen3", "rope_theta": 1e6},
    "qwen3 head_dim": {"model_type": "qwen3", "head_dim": 32, "attention_bias": True},
    "gemma2": {"model_type": "gemma2", "head_dim": 16},
    "gemma2 no caps": {
        "model_type": "gemma2",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "query_pre_attn_scalar": 144,
        "sliding_window": 32,
    },
    "gemma3 pattern": {"model_type": "gemma3_text", "sliding_window_pattern": 4},
    "gemma3 old keys": {
        "model_type": "gemma3_text",
        "rope_theta": 2e6,
        "rope_local_base_freq": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 32,
    },
    "gemma3 new keys": {
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention"] * 7 + ["full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "gemma3 capped": {"model_type": "gemma3_text", "final_logit_softcapping": 20.0},
    "phi3": {"model_type": "phi3", "sliding_window": 16},
    "phi3 longrope": {
        "model_type": "phi3",
        "rope_scaling": LONGROPE,
        "original_max_position_embeddings": 64,
    },
    "phi3 partial": {
        "model_type": "phi3",
        "partial_rotary_factor": 0.5,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [2.0, 3.0, 4.0, 5.0],
        },
        "original_max_position_embeddings": 64,
    },
}


def described(case: str, **changes: Any) -> tuple[ModelDescription, Any]:
    """Our description and transformers' configuration of the same file."""
    config = json.loads(json.dumps({**SIZES, **CASES[case], **changes}))
    return describe(copy.deepcopy(config), case), AutoConfig.for_model(**copy.deepcopy(config))


@pytest.mark.parametrize("case", CASES)
def test_sizes_and_flags_are_those_of_transformers(case: str) -> None:
    ours, theirs = described(case)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.hidden_size == theirs.hidden_size
    assert mlp(ours).intermediate_size == theirs.intermediate_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert attention(ours).num_heads == theirs.num_attention_heads
    assert attention(ours).num_kv_heads == theirs.num_key_value_heads
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert attention(ours).head_dim == head_dim
    assert (ours.usual_positions or ours.max_positions) == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.bos_token_id == theirs.bos_token_id
    eos = theirs.eos_token_id
    assert list(ours.eos_token_ids) == ([] if eos is None else eos if type(eos) is list else [eos])


@pytest.mark.parametrize("case", CASES)
def test_windows_are_those_of_transformers(case: str) -> None:
    ours, theirs = described(case)
    types = getattr(theirs, "layer_types", None) or ["sliding_attention"] * ours.num_layers
    window = getattr(theirs, "sliding_window", None)
    expected = [window if kind == "sliding_attention" else None for kind in types]
    assert list(windows(ours)) == expected


@pytest.mark.parametrize("case", CASES)
def test_rotary_frequencies_are_those_of_transformers(case: str) -> None:
    ours, theirs = described(case)
    for layer in ours.attentions:
        kind = "full_attention" if layer.window is None else "sliding_attention"
        by_kind = theirs.model_type == "gemma3_text"
        assert_same_rope(layer.rope, ours, theirs, kind if by_kind else None)


def assert_same_rope(
    rope: RopeDescription, ours: ModelDescription, theirs: Any, layer_type: str | None
) -> None:
    parameters = theirs.rope_parameters
    kind = (parameters[layer_type] if layer_type else parameters)["rope_type"]
    assert rope.scaling == ("none" if kind == "default" else kind)
    # transformers has no function for the default; it is "linear" with the factor 1.
    theirs = copy.deepcopy(theirs)
    if kind == "default":
        (theirs.rope_parameters[layer_type] if layer_type else theirs.rope_parameters)["factor"] = 1
    function = ROPE_INIT_FUNCTIONS["linear" if kind == "default" else kind]
    for length in (32, 400):
        frequencies, factor = function(theirs, seq_len=length, layer_type=layer_type)
        assert torch.equal(inverse_frequencies(rope, length), frequencies), f"{length} tokens"
        assert (rope.attention_factor or 1.0) == pytest.approx(factor, rel=1e-12)


def test_gemma_is_described_by_its_differences() -> None:
    ours, _ = described("gemma2 no caps")
    assert (ours.norm_offset, ours.layers[0].norms) == (1.0, "around")
    assert mlp(ours).activation == "gelu_tanh"
    assert ours.embedding_scale == 8.0
    assert attention(ours).scale == 1 / 12
    assert (attention(ours).softcap, ours.logit_softcap) == (None, None)
    ours, _ = described("gemma2")
    assert (attention(ours).softcap, ours.logit_softcap) == (50.0, 30.0)
    ours, _ = described("gemma3 capped")
    assert (attention(ours).softcap, ours.logit_softcap) == (None, 20.0)
    assert attention(ours).qk_norm


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("llama", (False, False, False, False)),
        ("llama biases", (True, True, True, False)),
        ("mistral", (False, False, False, False)),
        ("qwen2", (True, False, False, False)),
        ("qwen3", (False, False, False, True)),
        ("qwen3 head_dim", (True, True, False, True)),
        ("phi3", (False, False, False, False)),
    ],
)
def test_biases_and_norms(case: str, expected: tuple[bool, ...]) -> None:
    ours, _ = described(case)
    first = attention(ours)
    assert (first.qkv_bias, first.output_bias, mlp(ours).bias, first.qk_norm) == expected
    assert first.scale == first.head_dim**-0.5


def test_multimodal_gemma3_is_its_text_part() -> None:
    # As published: the text part leaves out what has its default value.
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34,
            "intermediate_size": 10240, "sliding_window": 1024,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}}  # fmt: skip
    config = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106],
              "vision_config": {"hidden_size": 1152}, "torch_dtype": "bfloat16"}  # fmt: skip
    ours = describe(config, "config.json")
    local, everywhere = attention(ours), attention(ours, 5)
    assert (ours.architecture, ours.vocab_size, local.num_heads) == ("gemma3", 262208, 8)
    assert (local.num_kv_heads, local.head_dim, ours.max_positions) == (4, 256, 131072)
    rope = everywhere.rope
    assert (rope.scaling, rope.factor, rope.theta) == ("linear", 8.0, 1e6)
    assert local.rope == RopeDescription(theta=10000.0, rotary_dim=256)
    assert ours.eos_token_ids == (1, 106)
    assert ours.tied_embeddings
    assert windows(ours)[:6] == (1024,) * 5 + (None,)


def test_longrope_serves_the_original_window_unless_asked() -> None:
    ours, _ = described("phi3 longrope")
    assert (ours.default_window, ours.max_positions) == (64, 512)
    factor = math.sqrt(1 + math.log(512 / 64) / math.log(64))
    assert attention(ours).rope.attention_factor == pytest.approx(factor)
    assert described("llama")[0].default_window == 512


def test_description_of_an_old_and_a_new_file_are_equal() -> None:
    assert described("llama 3.1, old keys")[0] == described("llama 3.1, new keys")[0]
    # What the first Phi-3 files called it; transformers itself stumbles over those by now.
    phi3 = {**SIZES, **CASES["phi3 longrope"]}
    for kind in ("su", "yarn"):
        older = describe({**phi3, "rope_scaling": LONGROPE | {"type": kind}}, "config.json")
        assert older == described("phi3 longrope")[0]


def test_other_families_are_refused_with_the_list() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mamba' is not supported") as caught:
        describe({**SIZES, "model_type": "mamba"}, "config.json")
    for family in BY_MODEL_TYPE:
        assert family in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": ["yarn"], "factor": 2.0}}, "rotary scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "bidirectional"),
        (
            {"model_type": "mistral", "num_hidden_layers": 2,
             "layer_types": ["full_attention", "sliding_attention"]},
            "layers of different kinds",
        ),
    ],
)  # fmt: skip
def test_features_without_code_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        describe({**SIZES, "model_type": "llama", **changes}, "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size should be a whole number from 1"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**400}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": 3}, "hidden_size 64 is not a multiple of num_attention_heads 3"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, "8 is not a multiple of"),
        ({"head_dim": 5000}, "head_dim should be a whole number from 1 to 4096"),
        ({"head_dim": 15}, "even share of 15"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rope_theta": 0.0}, "rope_theta|rope parameters"),
        ({"rope_theta": 10**400}, "rope_theta|rope parameters"),
        ({"rope_scaling": "linear"}, "rope_scaling should be an object"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor should be"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 1}}, "original_max"),
        ({"rope_scaling": {**LONGROPE, "short_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": {**LONGROPE, "long_factor": [0.0] * 8}}, "long_factor"),
        ({"rope_scaling": {**LONGROPE, "long_factor": [True] * 8}}, "long_factor"),
        ({"rope_scaling": {**LONGROPE, "long_factor": []}}, "long_factor"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": ["2"]}, "eos_token_id"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": [[]]}, "layer_types"),
        ({"model_type": "gemma3_text", "sliding_window": None}, "sliding_window"),
        ({"model_type": "exaone4", "sliding_window_pattern": "LLX"}, "sliding_window_pattern"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": ["llama"]}, "model_type should be a string"),
    ],
)
def test_nonsense_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        describe({**SIZES, "model_type": "llama", **changes}, "config.json")


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "yarn", "factor": 4.0}, 2048),
        ({"type": "linear", "factor": 2.5}, 1280),
        ({"type": "linear", "factor": 2.5, "original_max_position_embeddings": 128}, 512),
        (LLAMA3, 512),
    ],
)
def test_a_stretched_embedding_allows_longer_windows_than_the_usual_one(
    rope: dict[str, Any], longest: int
) -> None:
    ours = describe({**SIZES, "model_type": "llama", "rope_scaling": rope}, "config.json")
    assert ours.max_positions == longest
    assert ours.default_window == 512


def test_kimi_k2_is_deepseek_v3() -> None:
    config = {**SIZES, "kv_lora_rank": 24, "n_routed_experts": 8, "n_group": 1, "topk_group": 1}
    kimi, deepseek = (
        describe({**config, "model_type": model_type}, "config.json")
        for model_type in ("kimi_k2", "deepseek_v3")
    )
    assert kimi == deepseek
