"""Plan and reality agree: bytes of weights and KV as the loader really holds them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loire.base.cache_geometry import cache_geometry
from loire.base.config import WeightQuantization
from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.formats import FORMATS
from loire.checkpoint.open import open_checkpoint
from loire.planning.held_bytes import QUANTIZATIONS
from loire.planning.model_size import (
    ATTENTION_COST,
    ModelSize,
    doubling_context,
    size_by_hand,
    size_of_checkpoint,
)
from support.layers import with_attention

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, DIM, VOCAB = 256, 512, 2, 8, 2, 32, 1024


def write_model(directory: Path, *, tied: bool, repeat_head: bool = False) -> Checkpoint:
    """A Qwen2-like checkpoint (biases on queries, keys and values) of random weights."""
    from safetensors.torch import save_file

    config = {
        "model_type": "qwen2",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }
    kv = KV_HEADS * DIM
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    if not tied or repeat_head:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        parts: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.q_proj.bias": (HIDDEN,),
            "self_attn.k_proj.weight": (kv, HIDDEN),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.weight": (kv, HIDDEN),
            "self_attn.v_proj.bias": (kv,),
            "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            "mlp.gate_proj.weight": (INNER, HIDDEN),
            "mlp.up_proj.weight": (INNER, HIDDEN),
            "mlp.down_proj.weight": (HIDDEN, INNER),
            "input_layernorm.weight": (HIDDEN,),
            "post_attention_layernorm.weight": (HIDDEN,),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, str(directory / "model.safetensors"))
    return open_checkpoint(directory)


def loaded_bytes(
    checkpoint: Checkpoint, dtype: str, kernels: str, quantization: WeightQuantization = "auto"
) -> int:
    from loire.execution.device import TORCH_DTYPES
    from loire.kernels.select import select_backend
    from loire.models.loading import load_decoder

    device = torch.device("cpu")
    decoder = load_decoder(
        checkpoint,
        dtype=TORCH_DTYPES[dtype],
        device=device,
        backend=select_backend(kernels, device, TORCH_DTYPES[dtype]),
        max_model_len=64,
        quantization=quantization,
    )
    return decoder.weight_bytes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_planned_weights_are_the_loaded_ones(
    tmp_path: Path, tied: bool, dtype: str, kernels: str
) -> None:
    from loire.kernels.cpu import can_pack

    checkpoint = write_model(tmp_path / "model", tied=tied)
    packs = kernels == "cpu" and can_pack()
    size = size_of_checkpoint(
        checkpoint, "m", dtype=dtype, quantization=None, kv_dtype=dtype, on_cpu=packs
    )
    assert size.weight_bytes == pytest.approx(loaded_bytes(checkpoint, dtype, kernels), rel=0.01)
    assert (size.repeated_bytes > 0) is (tied and packs and dtype == "bfloat16")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_what_is_rounded_while_loading_is_counted(
    tmp_path: Path, quantization: WeightQuantization, tied: bool
) -> None:
    from loire.kernels.native.backend import NativeBackend

    if not NativeBackend.available()[0]:
        pytest.skip("other kernels keep other scales")
    checkpoint = write_model(tmp_path / "model", tied=tied)
    size = size_of_checkpoint(
        checkpoint,
        "m",
        dtype="bfloat16",
        quantization=quantization,
        kv_dtype="bfloat16",
        on_cpu=True,
    )
    held = loaded_bytes(checkpoint, "bfloat16", "native", quantization)
    assert size.weight_bytes == pytest.approx(held, rel=0.01)
    assert (size.repeated_bytes > 0) is tied
    by_hand = size_by_hand(10**6, 1, dtype="float32", quantization=quantization)
    assert by_hand.weight_bytes == {"int8": 1_000_000, "int4": 562_500}[quantization]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_planned_kv_is_the_allocated_one(tmp_path: Path, dtype: str) -> None:
    from loire.execution.device import KV_CACHE_DTYPES
    from loire.execution.kv_cache import KVCache
    from loire.kernels.reference_attention import ReferenceAttention

    checkpoint = write_model(tmp_path / "model", tied=True)
    size = size_of_checkpoint(
        checkpoint, "m", dtype="bfloat16", quantization=None, kv_dtype=dtype, on_cpu=True
    )
    geometry = cache_geometry(checkpoint.description.cache_needs(dtype), 16)
    kernels = ReferenceAttention()
    cpu = torch.device("cpu")
    cache = KVCache(checkpoint.description, geometry, 4, KV_CACHE_DTYPES[dtype], kernels, cpu)
    cache.pages.fill_(1)
    cache.touch(17)
    assert cache.pages.amax(1).tolist() == [0, 0, 1, 1]
    held = 0
    for layer in cache.layers:
        tensors = (layer.keys, layer.values, layer.key_scales, layer.value_scales)
        held += sum(tensor.nbytes for tensor in tensors if tensor is not None)
    assert size.kv_bytes_per_token * 4 * 16 == held == cache.pages.nbytes


def test_the_default_model_if_it_is_here() -> None:
    from loire.checkpoint.store import list_models

    found = [model.path for model in list_models() if model.name == "smollm2" and model.present]
    if not found or found[0] is None:
        pytest.skip("smollm2 is not in the store: loire pull smollm2")
    checkpoint = open_checkpoint(found[0])
    size = size_of_checkpoint(
        checkpoint,
        "smollm2",
        dtype="float32",
        quantization="none",
        kv_dtype="bfloat16",
        on_cpu=True,
    )
    assert size.num_parameters == 134_515_008
    assert size.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    assert size.weight_bytes == pytest.approx(
        loaded_bytes(checkpoint, "float32", "reference"), rel=0.01
    )


def test_a_step_reads_all_but_the_embedding_lookup(tmp_path: Path) -> None:
    table = VOCAB * HIDDEN
    layer = HIDDEN * HIDDEN * 2 + 2 * KV_HEADS * DIM * HIDDEN + 3 * INNER * HIDDEN
    for tied in (True, False):
        checkpoint = write_model(tmp_path / f"tied-{tied}", tied=tied)
        size = size_of_checkpoint(
            checkpoint, "m", dtype="bfloat16", quantization=None, kv_dtype="fp8", on_cpu=False
        )
        assert size.step_parameters == LAYERS * layer + table
        # Two operations per parameter, four per token of context and element of the queries.
        context = 2 * layer / (4 * HEADS * DIM * ATTENTION_COST)
        assert doubling_context(checkpoint.description) == round(context)
        assert size.step_weight_bytes == 2 * size.step_parameters
        assert size.head_parameters == table
        small = LAYERS * (2 * HIDDEN + HIDDEN + 2 * KV_HEADS * DIM) + HIDDEN
        assert size.num_parameters == LAYERS * layer + (1 if tied else 2) * table + small
        assert size.kv_bytes_per_token == 2 * LAYERS * KV_HEADS * DIM


def test_a_repeated_tied_head_does_not_count(tmp_path: Path) -> None:
    once = write_model(tmp_path / "once", tied=True)
    twice = write_model(tmp_path / "twice", tied=True, repeat_head=True)
    sizes = [
        size_of_checkpoint(
            checkpoint, "m", dtype="bfloat16", quantization=None, kv_dtype="bfloat16", on_cpu=False
        )
        for checkpoint in (once, twice)
    ]
    assert replace(sizes[0], description=None) == replace(sizes[1], description=None)


@pytest.mark.parametrize("quantization", sorted(QUANTIZATIONS))
def test_quantized_bytes_are_those_of_the_blocks(tmp_path: Path, quantization: str) -> None:
    checkpoint = write_model(tmp_path / "model", tied=False)
    size = size_of_checkpoint(
        checkpoint,
        "m",
        dtype="bfloat16",
        quantization=quantization,
        kv_dtype="bfloat16",
        on_cpu=True,
    )
    bits = FORMATS[quantization.upper()].bits_per_element
    assert size.step_weight_bytes == size.step_parameters * bits / 8
    assert size.repeated_bytes == 0
    by_hand = size_by_hand(1001, 1, dtype="float32", quantization=quantization)
    assert by_hand.weight_bytes == math.ceil(1001 * bits / 8)


def test_blocks_of_a_file_are_counted_as_they_lie_there(tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "model", tied=True)
    tensors = {
        name: replace(info, format=FORMATS["Q6_K"], num_bytes=math.prod(info.shape) // 256 * 210)
        if len(info.shape) == 2
        else info
        for name, info in checkpoint.tensors.items()
    }
    in_blocks = replace(checkpoint, tensors=tensors)

    def size(quantization: str | None) -> ModelSize:
        return size_of_checkpoint(
            in_blocks,
            "m",
            dtype="bfloat16",
            quantization=quantization,
            kv_dtype="bfloat16",
            on_cpu=True,
        )

    kept = size(None)
    assert kept.step_weight_bytes == kept.step_parameters * 210 / 256
    assert kept.repeated_bytes == 0  # rows are looked up in the packed head
    expanded = size("none")
    assert expanded.step_weight_bytes == 2 * expanded.step_parameters
    assert expanded.repeated_bytes > 0


def test_rows_that_do_not_fill_blocks_are_refused(tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "model", tied=True)
    name = "model.layers.0.mlp.down_proj.weight"
    odd = replace(checkpoint.tensors[name], shape=(HIDDEN, 288))
    changed = replace(checkpoint, tensors={**checkpoint.tensors, name: odd})
    with pytest.raises(ConfigError, match=r"256 .*288; take one of .*q4_0"):
        size_of_checkpoint(
            changed, "m", dtype="bfloat16", quantization="q4_k", kv_dtype="fp8", on_cpu=False
        )
    small_heads = replace(
        checkpoint, description=with_attention(checkpoint.description, head_dim=24)
    )
    with pytest.raises(ConfigError, match=r"32 .*24"):
        size_of_checkpoint(
            small_heads, "m", dtype="bfloat16", quantization=None, kv_dtype="q8_0", on_cpu=False
        )
