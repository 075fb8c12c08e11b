"""What GGUF metadata says of a model, family by family, and where its tensors belong."""

import math
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import LLAMA, gguf_name, llama_tensors, write_gguf, write_llama

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.families.registry import BY_ARCHITECTURE
from loire.checkpoint.gguf_file import read_gguf
from loire.checkpoint.gguf_model import describe, end_tokens
from loire.checkpoint.mixers import RopeDescription
from loire.checkpoint.open import open_checkpoint
from support.layers import attention, mlp, windows


def opened(tmp_path: Path, architecture: str = "llama", **options: Any) -> Checkpoint:
    return open_checkpoint(write_gguf(tmp_path / "model.gguf", architecture, **options))


def floats(count: int) -> "np.ndarray[Any, Any]":
    return np.linspace(1.0, 2.0, count, dtype=np.float32)


def with_tensors(*, without: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    tensors = {gguf_name(name): tensor for name, tensor in llama_tensors().items()}
    return {name: value for name, value in (tensors | more).items() if name not in without}


def test_a_llama_is_the_same_model_in_both_formats(tmp_path: Path) -> None:
    ours = opened(tmp_path)
    directory = open_checkpoint(write_llama(tmp_path / "directory"))
    assert ours.description.norm_eps == pytest.approx(directory.description.norm_eps)
    same = {"norm_eps": 0.0, "dtype": ""}  # GGUF holds the first in float32, and not the second
    assert replace(ours.description, **same) == replace(directory.description, **same)
    assert {name: info.shape for name, info in ours.tensors.items()} == {
        name: info.shape for name, info in directory.tensors.items()
    }
    assert ours.num_parameters == directory.num_parameters
    assert ours.weight_bytes == 4 * ours.num_parameters


def test_rows_of_queries_and_keys_are_interleaved_where_the_converter_does_it(
    tmp_path: Path,
) -> None:
    interleaved = ("llama", "mistral3", "smollm3", "granite")
    for family in (*interleaved, "qwen2", "qwen3", "phi3", "gemma2", "gemma3"):
        tensors = with_tensors()
        if family.startswith("gemma"):
            tensors |= {
                f"blk.{layer}.{name}.weight": np.ones(32, np.float32)
                for layer in range(2)
                for name in ("post_attention_norm", "post_ffw_norm")
            }
        path = tmp_path / family
        path.mkdir()
        checkpoint = opened(path, family, tensors=tensors)
        heads = {
            name.removeprefix("model.layers.0."): info.interleaved_heads
            for name, info in checkpoint.tensors.items()
            if info.interleaved_heads and name.startswith("model.layers.0.")
        }
        expected = {"self_attn.q_proj.weight": 4, "self_attn.k_proj.weight": 2}
        assert heads == (expected if family in interleaved else {}), family


def test_biases_of_llama_are_permuted_with_their_rows(tmp_path: Path) -> None:
    biases = {
        f"blk.{layer}.attn_{part}.bias": np.zeros(size, np.float32)
        for layer in range(2)
        for part, size in (("q", 32), ("k", 16), ("v", 16))
    }
    checkpoint = opened(tmp_path, tensors=with_tensors(**biases))
    assert attention(checkpoint.description).qkv_bias
    assert not attention(checkpoint.description).output_bias
    assert checkpoint.tensors["model.layers.1.self_attn.q_proj.bias"].interleaved_heads == 4
    assert checkpoint.tensors["model.layers.1.self_attn.v_proj.bias"].interleaved_heads == 0


def test_no_output_weight_means_tied(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, tensors=with_tensors(without=("output.weight",)))
    assert checkpoint.description.tied_embeddings
    assert "lm_head.weight" not in checkpoint.tensors


def test_the_divisors_of_llama3_are_honoured(tmp_path: Path) -> None:
    divisors = floats(4)
    tensors = with_tensors(**{"rope_freqs.weight": divisors})
    checkpoint = opened(tmp_path, tensors=tensors, extra={"llama.rope.freq_base": 500000.0})
    assert attention(checkpoint.description).rope == RopeDescription(
        theta=500000.0, rotary_dim=8, frequency_divisors=tuple(float(value) for value in divisors)
    )
    assert "rope_freqs.weight" not in checkpoint.tensors


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, ("none", 1.0)),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, ("none", 1.0)),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, ("linear", 4.0)),
        ({"llama.rope.scaling.factor": 4.0}, ("linear", 4.0)),
        ({"llama.rope.scale_linear": 2.0}, ("linear", 2.0)),
        ({"llama.rope.scaling.factor": 1.0}, ("none", 1.0)),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, ("yarn", 4.0)),
    ],
)
def test_rotary_scaling(tmp_path: Path, extra: dict[str, Any], expected: tuple[str, float]) -> None:
    rope = attention(opened(tmp_path, extra=extra).description).rope
    assert (rope.scaling, rope.factor) == expected
    if rope.scaling == "yarn":
        assert rope.attention_factor == pytest.approx(0.1 * math.log(4.0) + 1.0)
        assert rope.original_max_positions == 128


def phi3_tensors() -> dict[str, Any]:
    tensors = {}
    for name, tensor in with_tensors().items():
        if name.endswith("attn_q.weight"):
            tensors[name.replace("attn_q", "attn_qkv")] = np.ones((64, 32), np.float32)
        elif name.endswith("ffn_up.weight"):
            tensors[name] = np.ones((96, 32), np.float32)
        elif not name.endswith(("attn_k.weight", "attn_v.weight", "ffn_gate.weight")):
            tensors[name] = tensor
    return tensors


def test_phi3_has_fused_projections_and_longrope(tmp_path: Path) -> None:
    short, long = floats(3), 4 * floats(3)
    extra = {
        "phi3.rope.dimension_count": 6,
        "phi3.rope.scaling.original_context_length": 64,
        "phi3.attention.sliding_window": 0,
    }
    factors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    checkpoint = opened(tmp_path, "phi3", tensors=phi3_tensors() | factors, extra=extra)
    rope = attention(checkpoint.description).rope
    assert (rope.scaling, rope.rotary_dim, rope.original_max_positions) == ("longrope", 6, 64)
    assert rope.short_factors == tuple(float(value) for value in short)
    assert rope.long_factors == tuple(float(value) for value in long)
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(2) / math.log(64)))
    assert windows(checkpoint.description) == (None, None)
    assert checkpoint.tensors["model.layers.0.self_attn.qkv_proj.weight"].shape == (64, 32)
    assert checkpoint.tensors["model.layers.0.mlp.gate_up_proj.weight"].shape == (96, 32)
    assert "model.layers.0.mlp.up_proj.weight" not in checkpoint.tensors


def gemma_tensors(*, head_norms: bool) -> dict[str, Any]:
    tensors = with_tensors(without=("output.weight",))
    for layer in range(2):
        for name in ("post_attention_norm", "post_ffw_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(32, np.float32)
        for name in ("attn_q_norm", "attn_k_norm") if head_norms else ():
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(8, np.float32)
    return tensors


def test_gemma2(tmp_path: Path) -> None:
    extra = {
        "gemma2.attention.sliding_window": 16,
        "gemma2.attn_logit_softcapping": 50.0,
        "gemma2.final_logit_softcapping": 30.0,
    }
    tensors = gemma_tensors(head_norms=False)
    description = opened(tmp_path, "gemma2", tensors=tensors, extra=extra).description
    assert windows(description) == (16, None)
    first = attention(description)
    assert (first.softcap, description.logit_softcap) == (50.0, 30.0)
    assert (description.norm_offset, description.layers[0].norms) == (0.0, "around")
    assert (mlp(description).activation, first.qk_norm) == ("gelu_tanh", False)
    assert description.embedding_scale == 32**0.5
    assert first.scale == 8**-0.5
    assert first.rope == attention(description, 1).rope


def test_gemma3(tmp_path: Path) -> None:
    extra = {"gemma3.attention.sliding_window": 16}
    tensors = gemma_tensors(head_norms=True)
    checkpoint = opened(tmp_path, "gemma3", tensors=tensors, extra=extra)
    description = checkpoint.description
    assert windows(description) == (16, 16)
    assert (attention(description).qk_norm, description.norm_offset) == (True, 0.0)
    names = {name.rsplit("layers.0.")[-1] for name in checkpoint.tensors}
    assert {"pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight",
            "post_attention_layernorm.weight", "self_attn.q_norm.weight"} <= names  # fmt: skip


def test_every_sixth_layer_of_gemma3_sees_everything(tmp_path: Path) -> None:
    config = {**LLAMA, "num_hidden_layers": 7}
    extra = {"gemma3.attention.sliding_window": 16, "gemma3.rope.freq_base": 1e6,
             "gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}  # fmt: skip
    description = opened(tmp_path, "gemma3", config=config, extra=extra).description
    assert windows(description) == (16,) * 5 + (None, 16)
    everywhere = attention(description, 5).rope
    assert (everywhere.theta, everywhere.factor) == (1e6, 8.0)
    assert attention(description).rope == RopeDescription(theta=10000.0, rotary_dim=8)


def test_end_tokens_are_found_by_name_too(tmp_path: Path) -> None:
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"t{i}" for i in range(61))]
    path = write_gguf(tmp_path / "model.gguf", extra={"tokenizer.ggml.eot_token_id": 7})
    data = path.read_bytes()
    for index, token in enumerate(tokens[:3]):
        old = f"token{index}".encode()
        data = data.replace(
            len(old).to_bytes(8, "little") + old,
            len(token).to_bytes(8, "little") + token.encode(),
            1,
        )
    path.write_bytes(data + b"\0" * 32)
    # eos, eot, then control tokens of those names; <|im_start|> ends nothing.
    assert open_checkpoint(path).description.eos_token_ids == (2, 7, 0)


def test_the_chat_template_and_tokenizer_come_from_the_metadata(tmp_path: Path) -> None:
    extra = {"tokenizer.chat_template": "{{ messages }}"}
    checkpoint = opened(tmp_path, extra=extra)
    assert checkpoint.chat_template == "{{ messages }}"
    assert checkpoint.tokenizer.gguf_metadata is not None
    assert len(checkpoint.tokenizer.gguf_metadata["tokenizer.ggml.tokens"]) == 64


def test_other_architectures_are_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'mamba' is not supported") as caught:
        opened(tmp_path, "mamba")
    for family in BY_ARCHITECTURE:
        assert family in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"llama.attention.value_length": 16}, "8 dimensions per head and values 16"),
        (
            {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0},
            "rotary scaling 'longrope'",
        ),
    ],
)
def test_features_without_code_are_refused(
    tmp_path: Path, extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        opened(tmp_path, extra=extra)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {**LLAMA, "num_attention_heads": 0}, "tensors": {}}, "head_count"),
        ({"config": {**LLAMA, "num_key_value_heads": 3}, "tensors": {}}, "4 query heads are not"),
        ({"tensors": {}}, "no tensor 'token_embd.weight'"),
        ({"tensors": with_tensors(**{"blk.0.magic.weight": floats(4)})}, "'blk.0.magic.weight'"),
        ({"tensors": with_tensors(**{"rope_freqs.weight": floats(3)})}, "should be 4 numbers"),
        ({"tensors": with_tensors(**{"rope_freqs.weight": -floats(4)})}, "not positive"),
        ({"extra": {"llama.rope.dimension_count": 10}}, "dimension_count"),
        ({"extra": {"llama.rope.dimension_count": 5}}, "dimension_count"),
        ({"extra": {"llama.rope.freq_base": 0.0}}, "freq_base"),
        ({"config": {**LLAMA, "num_key_value_heads": [2, 2]}, "tensors": {}}, "head_count_kv"),
        ({"extra": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": -1.0}},
         "factor"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, **options)


def ends(tokens: dict[str, int]) -> set[str]:
    """Names of the end tokens of a vocabulary of these tokens with their types."""
    metadata = {
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.tokens": [*tokens],
        "tokenizer.ggml.token_type": array("i", tokens.values()),
    }
    return {[*tokens][index] for index in end_tokens(metadata)}


def test_end_tokens_by_their_names() -> None:
    eos = {"<|endoftext|>": 3}
    # Whatever the file calls them, but for names that are words of code.
    assert ends(eos | {"<|im_end|>": 4}) == {"<|endoftext|>", "<|im_end|>"}
    assert ends(eos | {"<end_of_turn>": 1}) == {"<|endoftext|>", "<end_of_turn>"}
    assert ends(eos | {"</s>": 1, "<|im_start|>": 3}) == {"<|endoftext|>"}
    assert ends(eos | {"</s>": 3}) == {"<|endoftext|>", "</s>"}
    # gpt-oss: a message ends, the answer does not.
    harmony = {"<|return|>": 3, "<|call|>": 3, "<|end|>": 3}
    assert ends(eos | harmony) == {"<|endoftext|>", "<|return|>", "<|call|>"}
    assert ends(eos | {"<|end|>": 3}) == {"<|endoftext|>", "<|end|>"}


@pytest.mark.parametrize(
    ("architecture", "pattern", "expected"),
    [
        ("gemma2", None, (16, None, 16, None)),
        ("gemma3", None, (16, 16, 16, 16)),
        ("gemma3", 2, (16, None, 16, None)),
        ("gemma3", [True, False, False, True], (16, None, None, 16)),
    ],
)
def test_which_layers_have_windows_stands_in_the_file(
    tmp_path: Path, architecture: str, pattern: object, expected: tuple[int | None, ...]
) -> None:
    extra: dict[str, Any] = {f"{architecture}.attention.sliding_window": 16}
    if pattern is not None:
        extra[f"{architecture}.attention.sliding_window_pattern"] = pattern
    config = {**LLAMA, "num_hidden_layers": 4}
    file = write_gguf(tmp_path / "m.gguf", architecture, config=config, extra=extra)
    assert windows(describe(read_gguf(file))) == expected
