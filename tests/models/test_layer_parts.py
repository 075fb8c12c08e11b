"""Layers with one part only, and attention over another layer's keys and values."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from torch import Tensor

from loire.base.cache_geometry import cache_geometry
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.mixers import AttentionDescription
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.weights import each
from loire.execution.kv_cache import KVCache
from loire.kernels.interface import AttentionKernels, AttentionShape, Backend, LayerCache
from loire.kernels.native.backend import NativeBackend
from loire.kernels.reference import ReferenceBackend
from loire.kernels.reference_attention import attend_row
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from support.paged_driver import CPU, DrivenSequence, PagedDriver

usable, why = NativeBackend.available()
BACKENDS = [
    ReferenceBackend,
    pytest.param(NativeBackend, marks=pytest.mark.skipif(not usable, reason=why)),
]
TOKENS = [3 + (7 * i * i + i) % 125 for i in range(40)]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, with norms of heads."""
    [family] = [family for family in FAMILIES if family.name == "qwen3"]
    directory = tmp_path_factory.mktemp("qwen3")
    family.save(directory)
    return directory


def changed(
    source: Path, target: Path, change: Callable[[ModelDescription], ModelDescription]
) -> Checkpoint:
    """The model with another description, and no tensors but those that it has then."""
    checkpoint = open_checkpoint(source)
    description = change(checkpoint.description)
    present = set(checkpoint.tensors)
    names = {n for weight in each(description.weights()) for n in weight.stored_names(present)}
    target.mkdir(exist_ok=True)
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n in names}, target / "model.safetensors")
    return replace(open_checkpoint(target), description=description)


def load(checkpoint: Checkpoint, kernels: type[Backend]) -> Decoder:
    return load_decoder(
        checkpoint, dtype=torch.float32, device=CPU, backend=kernels(), max_model_len=64
    )


def logits(decoder: Decoder, *chunks: int) -> Tensor:
    driver, sequence, outputs = PagedDriver(decoder), DrivenSequence(), []
    for first, end in zip((0, *chunks), (*chunks, len(TOKENS)), strict=True):
        outputs += driver.step([(sequence, TOKENS[first:end])])
    return torch.cat(outputs)


def one_part_each(description: ModelDescription) -> ModelDescription:
    first, second, third = description.layers
    layers = (replace(first, mixer=None), replace(second, feed_forward=None), third)
    return replace(description, layers=layers)


@pytest.mark.parametrize("kernels", BACKENDS)
def test_a_part_that_is_absent_adds_nothing(
    qwen3: Path, tmp_path: Path, kernels: type[Backend]
) -> None:
    """As if its last matrix were zero."""
    decoder = load(changed(qwen3, tmp_path / "parts", one_part_each), kernels)
    assert [len(list(layer.parts)) for layer in decoder.layers] == [1, 1, 2]
    tensors = load_file(qwen3 / "model.safetensors")
    for name in ("layers.0.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight"):
        tensors[f"model.{name}"] = torch.zeros_like(tensors[f"model.{name}"])
    whole = tmp_path / "zeros"
    whole.mkdir()
    (whole / "config.json").write_bytes((qwen3 / "config.json").read_bytes())
    save_file(tensors, whole / "model.safetensors")
    expected = logits(load(open_checkpoint(whole), kernels))
    assert torch.equal(logits(decoder), expected)
    assert torch.allclose(logits(decoder, 7, 25), expected, atol=1e-4, rtol=1e-4)


def test_only_layers_that_keep_something_have_a_cache(qwen3: Path) -> None:
    description = one_part_each(open_checkpoint(qwen3).description)
    geometry = cache_geometry(description.cache_needs("float32"), 16)
    kernels = ReferenceBackend().attention
    cache = KVCache(description, geometry, 4, torch.float32, kernels, CPU)
    assert [layer.keys.numel() > 0 for layer in cache.layers] == [False, True, True]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 4 * 16 * description.kv_bytes_per_token("float32")
    cache.copy([(0, 1)])


def last_reads_first(description: ModelDescription) -> ModelDescription:
    *layers, last = description.layers
    assert isinstance(last.mixer, AttentionDescription)
    last = replace(last, mixer=replace(last.mixer, cache_of=0))
    return replace(description, layers=(*layers, last))


@pytest.mark.parametrize("kernels", BACKENDS)
def test_attention_over_another_layers_cache(
    qwen3: Path, tmp_path: Path, kernels: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = changed(qwen3, tmp_path, last_reads_first)
    assert "model.layers.2.self_attn.k_proj.weight" not in checkpoint.tensors
    decoder = load(checkpoint, kernels)
    driver, sequence = PagedDriver(decoder), DrivenSequence()
    first, second, last = driver.caches
    assert last is first
    attended: list[tuple[Tensor, AttentionShape, Tensor]] = []
    attention = type(decoder.backend.attention)
    attend = attention.attend

    def watched(
        self: AttentionKernels,
        queries: Tensor,
        cache: LayerCache,
        plan: object,
        shape: AttentionShape,
    ) -> Tensor:
        found = attend(self, queries, cache, plan, shape)
        attended.append((queries.clone(), shape, found.clone()))
        return found

    monkeypatch.setattr(attention, "attend", watched)
    whole = driver.step([(sequence, TOKENS)])[0]
    monkeypatch.undo()
    # The first and the last layer attend to the same keys and values, the second to its own.
    for (queries, shape, found), cache in zip(attended, (first, second, first), strict=True):
        keys, values = (
            tensor[sequence.blocks].transpose(0, 1).flatten(1, 2)[:, : len(TOKENS)]
            for tensor in (cache.keys, cache.values)
        )
        exact = attend_row(queries, keys, values, shape).flatten(1)
        assert torch.allclose(found, exact, atol=1e-4, rtol=1e-4)
    assert torch.allclose(logits(decoder, 7, 25), whole, atol=1e-4, rtol=1e-4)
    exact_logits = logits(load(checkpoint, ReferenceBackend))
    assert torch.allclose(whole, exact_logits, atol=1e-3, rtol=1e-3)
