"""Gemma 4 as the files have it: GGUF as llama.cpp's converter writes it (names are those of the
gguf library, metadata and extra tensors those of its Gemma4Model), and Hugging Face's spelling."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from families import FAMILIES, LOCAL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.open import open_checkpoint
from loire.kernels.reference import ReferenceBackend
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from loire.planning.model_size import size_of_checkpoint
from support.paged_driver import CPU, DrivenSequence, PagedDriver

TOKENS = [3 + (11 * i * i + 5 * i) % 125 for i in range(70)]
NAMES = [family.name for family in FAMILIES if family.name.startswith("gemma4")]


def saved(name: str, directory: Path) -> PreTrainedModel:
    [family] = [family for family in FAMILIES if family.name == name]
    settings = {key: value for key, value in family.settings.items() if key != "attention_bias"}
    return replace(family, settings=settings).save(directory)


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(
        checkpoint, dtype=dtype, device=CPU, backend=ReferenceBackend(), max_model_len=128
    )


def logits(path: Path) -> Tensor:
    return PagedDriver(load(open_checkpoint(path))).step([(DrivenSequence(), TOKENS)])[0]


def gguf_name(name: str, names: gguf.TensorNameMap) -> str:
    """As the converter's filter_tensors and modify_tensors call them."""
    layer = name.split(".")[2] if name.startswith("model.layers.") else ""
    if name.endswith("router.scale"):
        return f"blk.{layer}.ffn_gate_inp.scale"
    if name.endswith("per_expert_scale"):
        return f"blk.{layer}.ffn_down_exps.scale"
    if name.endswith("layer_scalar") or ".experts." in name:
        name += ".weight"
    found: str | None = names.get_name(name, try_suffixes=(".weight",))
    assert found is not None, name
    return found


def write(path: Path, model: PreTrainedModel) -> None:
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "gemma4")
    full = config.layer_types.index("full_attention")
    full_dim = config.per_layer_config[full].head_dim
    kv_heads = [
        config.per_layer_config[i].num_key_value_heads for i in range(len(config.layer_types))
    ]
    count, shared = config.num_hidden_layers, config.num_kv_shared_layers
    size, local_dim = config.intermediate_size, config.per_layer_config[0].head_dim
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(count)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(kv_heads if len(set(kv_heads)) > 1 else kv_heads[0])
    if config.use_double_wide_mlp:
        writer.add_feed_forward_length([size] * (count - shared) + [2 * size] * shared)
    else:
        writer.add_feed_forward_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == LOCAL for kind in config.layer_types])
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(
        getattr(config, "hidden_size_per_layer_input", 0) or 0
    )
    writer.add_key_length(full_dim)
    writer.add_value_length(full_dim)
    writer.add_key_length_swa(local_dim)
    writer.add_value_length_swa(local_dim)
    writer.add_rope_dimension_count(full_dim)
    writer.add_rope_dimension_count_swa(local_dim)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters[LOCAL]["rope_theta"])
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if getattr(config, "enable_moe_block", False):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA4, count)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(gguf_name(name, names), tensor.contiguous().numpy())
    rotated = int(full_dim * 0.25 / 2)
    factors = [1.0] * rotated + [1e30] * (full_dim // 2 - rotated)
    writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_are_the_same_model(tmp_path: Path, name: str) -> None:
    write(tmp_path / "model.gguf", saved(name, tmp_path / "directory"))
    expected = logits(tmp_path / "directory")
    found = logits(tmp_path / "model.gguf")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["gemma4_everything", "gemma4_unified"])
def test_the_text_of_a_model_of_more(tmp_path: Path, name: str) -> None:
    """As the makers' own files are: text beside vision and audio, heads of layers without a window
    outside per_layer_config, keys and values of layers that read those of others."""
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    saved(name, plain)
    whole.mkdir()
    text = json.loads((plain / "config.json").read_text())
    global_heads = next(iter(text.pop("per_layer_config").values()))
    text["global_head_dim"] = global_heads["head_dim"]
    text["num_global_key_value_heads"] = global_heads["num_key_value_heads"]
    wrapper = text["model_type"].removesuffix("_text")
    config = {"model_type": wrapper, "text_config": text, "tie_word_embeddings": True}
    (whole / "config.json").write_text(json.dumps(config))
    tensors = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(plain / "model.safetensors").items()
    }
    for other in ("vision_tower.a", "audio_tower.b", "embed_vision.c", "vision_embedder.d"):
        tensors[f"model.{other}.weight"] = torch.zeros(3)
    last = text["num_hidden_layers"] - 1
    if text["num_kv_shared_layers"]:
        for part in ("k_proj", "v_proj", "k_norm"):
            tensors[f"model.language_model.layers.{last}.self_attn.{part}.weight"] = torch.zeros(3)
    save_file(tensors, whole / "model.safetensors")
    assert torch.equal(logits(whole), logits(plain))


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_counts_what_is_loaded(tmp_path: Path, name: str) -> None:
    saved(name, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    size = size_of_checkpoint(
        checkpoint, "m", dtype="float32", quantization=None, kv_dtype="float32", on_cpu=False
    )
    decoder = load(checkpoint)
    vectors = sum(info.num_bytes for info in checkpoint.tensors.values() if len(info.shape) == 1)
    assert size.weight_bytes == decoder.weight_bytes + vectors
    if "experts" not in name and "everything" not in name:
        assert size.step_weight_bytes == decoder.bytes_per_step()
    kept = [need for need in checkpoint.description.caches if need is not None]
    assert len(kept) == sum(layer.cache_of == i for i, layer in enumerate(decoder.layers))
    assert size.kv_bytes_per_token == sum(need.bytes_per_token("float32") for need in kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_shared_layers": 8}, "layer 0 should share the keys and values of an earlier"),
        ({"num_kv_shared_layers": 7}, "layer 1 should share the keys and values of an earlier"),
        ({"num_kv_shared_layers": 9}, "num_kv_shared_layers should be"),
        ({"top_k_experts": 7}, "top_k_experts should be at most num_experts, 6, but is 7"),
        ({"sliding_window": None}, "sliding_window"),
        ({"per_layer_config": {"0": {}}}, "per_layer_config: 1 is missing"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    saved("gemma4_everything", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_what_is_not_supported(tmp_path: Path) -> None:
    saved("gemma4_keys_as_values", tmp_path)
    path = tmp_path / "config.json"
    config = {**json.loads(path.read_text()), "use_bidirectional_attention": "all"}
    path.write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="bidirectional attention"):
        open_checkpoint(tmp_path)


def test_an_expert_that_is_missing(tmp_path: Path) -> None:
    saved("gemma4_experts", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.experts.down_proj"
    tensors[name] = tensors[name][:5].clone()
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"1 missing \(model.layers.1.mlp.experts.5.down"):
        load(open_checkpoint(tmp_path))
