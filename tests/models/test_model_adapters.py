"""Adapters by the products of a decoder, against models they are merged into, in float32."""

import random
from collections.abc import Callable
from dataclasses import replace as with_changes
from pathlib import Path

import pytest
import torch
from families import FAMILIES, Family
from torch import Tensor

from loire.checkpoint.adapter import open_adapter
from loire.checkpoint.open import open_checkpoint
from loire.kernels.interface import AdapterRows
from loire.kernels.select import available_backends, select_backend
from loire.models.adapters import adapt, drop_adapter, read_adapter
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from loire.planning.adapter_size import Adapters, adapter_bytes
from support.adapter_files import adapter_tensors, merged, save_adapter, target_parameters
from support.paged_driver import CPU, DrivenSequence, PagedDriver

BACKENDS = [info.name for info in available_backends() if info.usable]
SOME = ("llama_biases", "llama_head_dim_tied", "gemma3", "phi3", "gemma4_per_layer", "qwen2",
        "qwen3_5", "qwen3_next", "qwen3_moe", "glm4", "lfm2_moe", "gpt_oss", "deepseek_v2_lite",
        "glm4_moe_lite", "granitemoehybrid", "nemotron_h_latent", "gemma4_experts")  # fmt: skip
"""Between them all kinds of layers."""
TOKENS = [3 + (7 * i * i + i) % 125 for i in range(40)]


def load(directory: Path, backend: str) -> Decoder:
    return load_decoder(
        open_checkpoint(directory),
        dtype=torch.float32,
        device=CPU,
        backend=select_backend(backend, CPU, torch.float32),
        max_model_len=128,
    )


class AdaptedDriver(PagedDriver):
    """Every token has adapter number 5."""

    number = 5

    def step(self, rows, counts=None):  # type: ignore[no-untyped-def]
        upload = self.decoder.backend.transfers.upload

        def adapted(host, latest):  # type: ignore[no-untyped-def]
            tokens, batch = upload(host, latest)
            numbers = torch.full((len(host.token_ids),), self.number, dtype=torch.int32)
            return tokens, with_changes(batch, adapters=AdapterRows(numbers))

        self.decoder.backend.transfers.upload = adapted  # type: ignore[method-assign]
        try:
            return super().step(rows, counts)
        finally:
            self.decoder.backend.transfers.upload = upload  # type: ignore[method-assign]


def logits(driver: PagedDriver) -> Tensor:
    sequence = DrivenSequence()
    pieces = [TOKENS[:20], TOKENS[20:35], *([token] for token in TOKENS[35:])]
    return torch.cat([driver.step([(sequence, piece)])[0] for piece in pieces])


@pytest.mark.parametrize("name", SOME)
def test_an_adapter_is_as_if_merged(tmp_path: Path, name: str) -> None:
    """Of all linear layers and experts, or of part of them; dropped, it leaves every bit as it
    was."""
    [family] = [family for family in FAMILIES if family.name == name]
    model = family.save(tmp_path / "model")
    rank = random.Random(name).choice((1, 3, 8, 16))
    tensors = adapter_tensors(model, rank, None, size=0.1)
    if name == "qwen2":
        tensors = {key: value for key, value in tensors.items() if ".layers.1." in key}
    directory = save_adapter(
        tmp_path / "adapter", tensors, rank, target_parameters=target_parameters(model)
    )
    merged(model, tensors, 2.0)
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS])).logits[0].float()
    tolerance = max(2e-4, family.tolerance) * float(expected.abs().max())
    for backend in BACKENDS:
        decoder = load(tmp_path / "model", backend)
        plain = logits(PagedDriver(decoder))
        _, weights = read_adapter(directory, decoder, CPU)
        if name == "qwen3_moe":  # (all its linear layers have an adapter, and all experts)
            held = sum(packed.num_bytes for _, packed in weights)
            planned = adapter_bytes(decoder.description, Adapters(1, rank, True), element_bytes=4)
            assert held == pytest.approx(planned, rel=0.15), "lines of a cache aside"
        adapt(5, weights)
        found = logits(AdaptedDriver(decoder))
        assert not torch.allclose(plain, expected, atol=0.01), "it matters"
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        assert torch.equal(logits(PagedDriver(decoder)), plain)
        drop_adapter(5, (product for product, _ in weights))
        without = logits(AdaptedDriver(decoder))
        torch.testing.assert_close(without, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def test_the_head_has_its_own(tmp_path: Path) -> None:
    [family] = [family for family in FAMILIES if family.name == "qwen2"]
    model = family.save(tmp_path / "model")
    tensors = adapter_tensors(model, 4, ("lm_head",))
    description = open_checkpoint(tmp_path / "model").description
    adapter = open_adapter(save_adapter(tmp_path / "adapter", tensors, 4), description)
    assert [part.target.product for part in adapter.parts] == ["lm_head"]


def test_every_family_says_what_can_be_adapted(saved_family: Callable[[Family], Path]) -> None:
    """As many products of those names as are made."""
    from loire.checkpoint.adapter_targets import AdapterTargets

    family: Family
    for family in FAMILIES:
        checkpoint = open_checkpoint(saved_family(family))
        decoder = load_decoder(
            checkpoint,
            dtype=torch.float32,
            device=CPU,
            backend=select_backend("reference", CPU, torch.float32),
            max_model_len=64,
        )
        for target in AdapterTargets(checkpoint.description).by_name.values():
            weight = decoder.adaptable[target.product.format(0)]
            assert weight.inputs == target.inputs, (family.name, target)
