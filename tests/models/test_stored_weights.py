"""Matrices that stay in the blocks of a file: those bits are what is computed with."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from torch import Tensor

from loire.base.config import WeightQuantization
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo
from loire.checkpoint.formats import BLOCK_FORMATS, WeightFormat
from loire.checkpoint.open import open_checkpoint
from loire.kernels.block_formats import UNPACK
from loire.kernels.interface import Backend
from loire.kernels.native.backend import NativeBackend
from loire.kernels.reference import ReferenceBackend
from loire.kernels.reference_linear import ReferenceLinearKernels
from loire.models.decoder import Decoder
from loire.models.feed_forward import GatedMLP
from loire.models.loading import load_decoder
from loire.models.mixers import Attention
from loire.models.tensors import TensorReader
from loire.planning.model_size import size_of_checkpoint
from support.blocks import blocks_of
from support.layers import attention
from support.paged_driver import CPU, DrivenSequence, PagedDriver

usable, why = NativeBackend.available()
NATIVE = pytest.param(NativeBackend, marks=pytest.mark.skipif(not usable, reason=why))
TOKENS = list(range(3, 40))


class KeepingLinear(ReferenceLinearKernels):
    def keeps(self, formats: Collection[WeightFormat], dtype: torch.dtype) -> bool:
        """Everything."""
        return True


class Keeping(ReferenceBackend):
    """The definition, with weights as they are stored, slow as that is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = KeepingLinear()


BACKENDS = [Keeping, NATIVE]


def quantized(folder: Path, formats: dict[str, str], default: str = "Q8_0") -> Checkpoint:
    """A Llama whose matrices are in the default format or in that given for a projection, its
    queries and keys interleaved as in GGUF."""
    [family] = [family for family in FAMILIES if family.name == "llama_biases"]
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    if not (folder / "config.json").exists():
        replace(family, settings={**family.settings, **sizes}).save(folder)
    checkpoint = open_checkpoint(folder)
    first = attention(checkpoint.description)
    heads = {"q_proj": first.num_heads, "k_proj": first.num_kv_heads}
    tensors = dict(checkpoint.tensors)
    path = folder / "blocks.bin"
    with path.open("wb") as file:
        for index, (name, info) in enumerate(checkpoint.tensors.items()):
            part = name.split(".")[-2]
            if not name.endswith(("proj.weight", *(f"{part}.weight" for part in formats))):
                continue
            fmt = formats.get(part, default)
            tensors[name] = TensorInfo(
                name=name,
                shape=info.shape,
                format=BLOCK_FORMATS[fmt],
                path=path,
                offset=file.tell(),
                num_bytes=file.write(blocks_of(fmt, info.shape, index).tobytes()),
                interleaved_heads=heads.get(part, 0),
            )
    return replace(checkpoint, tensors=tensors)


def load(
    checkpoint: Checkpoint,
    kernels: Backend,
    quantization: WeightQuantization = "auto",
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    return load_decoder(
        checkpoint,
        dtype=dtype,
        device=CPU,
        backend=kernels,
        max_model_len=64,
        quantization=quantization,
    )


def logits(decoder: Decoder) -> Tensor:
    return PagedDriver(decoder).step([(DrivenSequence(), TOKENS)])[0]


def parts(decoder: Decoder) -> tuple[Attention, GatedMLP]:
    mixer, feed_forward = decoder.layers[0].mixer, decoder.layers[0].feed_forward
    assert isinstance(mixer, Attention)
    assert isinstance(feed_forward, GatedMLP)
    return mixer, feed_forward


@pytest.mark.parametrize("fmt", UNPACK)
def test_the_reference_computes_with_the_bits_of_the_file(tmp_path: Path, fmt: str) -> None:
    """float32 inputs are not rounded: the same numbers as of the expanded model."""
    checkpoint = quantized(tmp_path, {"lm_head": fmt}, fmt)
    kept = load(checkpoint, Keeping())
    mixer, mlp = parts(kept)
    rows = {mixer.qkv: 512, mixer.output: 256, mlp.gate_up: 1024, mlp.down: 256, kept.head: 128}
    for linear, outputs in rows.items():
        assert linear.weight_bytes == BLOCK_FORMATS[fmt].num_bytes(outputs * linear.in_features)
    expanded = load(checkpoint, Keeping(), "none")
    assert expanded.weight_bytes > kept.weight_bytes
    assert torch.allclose(logits(kept), logits(expanded), rtol=1e-4, atol=1e-4)


def test_formats_are_mixed_within_a_product(tmp_path: Path) -> None:
    """But for halves of which one gates the other: those are expanded."""
    formats = {"q_proj": "Q4_K", "k_proj": "Q4_K", "v_proj": "Q6_K", "up_proj": "Q5_K"}
    checkpoint = quantized(tmp_path, formats)
    kept = load(checkpoint, Keeping())
    mixer, mlp = parts(kept)
    assert mixer.qkv.weight_bytes == 384 * 144 + 128 * 210
    assert mlp.gate_up.weight_bytes == 2 * 512 * 256 * 4
    assert torch.allclose(
        logits(kept), logits(load(checkpoint, ReferenceBackend(), "none")), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_only_what_has_sixteen_bits_or_more_is_rounded(
    tmp_path: Path, quantization: WeightQuantization
) -> None:
    """Here the output head."""
    checkpoint = quantized(tmp_path, {})
    decoder = load(checkpoint, Keeping(), quantization)
    assert parts(decoder)[0].output.weight_bytes == 256 * 256 // 32 * 34
    assert decoder.head.weight_bytes == 128 * (256 + 4)
    exact = logits(load(checkpoint, ReferenceBackend(), "none"))
    assert (logits(decoder) - exact).std() < 0.02 * exact.std()


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("fmt", ["Q4_1", "Q4_K", "Q6_K", "Q8_0", "IQ4_XS"])
def test_in_bfloat16_inputs_are_rounded(tmp_path: Path, kernels: type[Backend], fmt: str) -> None:
    checkpoint = quantized(tmp_path, {}, fmt)
    decoder = load(checkpoint, kernels(), dtype=torch.bfloat16)
    assert parts(decoder)[0].output.weight_bytes < 2 * 256 * 256
    exact = logits(load(checkpoint, ReferenceBackend(), "none"))
    assert (logits(decoder) - exact).std() < 0.1 * exact.std()


@pytest.mark.skipif(not usable, reason=why)
def test_what_is_held_is_what_is_planned(tmp_path: Path) -> None:
    """Also where the halves of a gated product differ, and are expanded."""
    kernels = NativeBackend(1)
    for formats, default in [({"lm_head": "Q6_K"}, "Q4_K"), ({"up_proj": "Q5_K"}, "Q4_K")]:
        checkpoint = quantized(tmp_path, formats, default)
        planned = size_of_checkpoint(
            checkpoint, "x", dtype="bfloat16", quantization=None, kv_dtype="bfloat16", on_cpu=True
        )
        held = load(checkpoint, kernels, dtype=torch.bfloat16).bytes_per_step()
        assert planned.step_weight_bytes == pytest.approx(held, rel=0.001), (formats, default)


def test_what_stays_does_not_lie_in_the_file(tmp_path: Path) -> None:
    """The reference keeps the blocks; the file may be replaced while it computes."""
    checkpoint = quantized(tmp_path, {})
    decoder = load(checkpoint, Keeping())
    before = logits(decoder)
    path = tmp_path / "blocks.bin"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(logits(decoder), before)


@pytest.mark.parametrize("heads", [0, 2])
def test_rows_of_blocks_are_put_into_the_usual_order(tmp_path: Path, heads: int) -> None:
    blocks = blocks_of("Q4_K", (12, 512), 0)
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\xff" * 33 + blocks.tobytes())
    info = TensorInfo(
        name="w",
        shape=(12, 512),
        format=BLOCK_FORMATS["Q4_K"],
        path=path,
        offset=33,
        num_bytes=blocks.size,
        interleaved_heads=heads,
    )
    reader = TensorReader({"w": info})
    assert torch.equal(reader.read_blocks("w").values(), reader.read("w", torch.float32))
