"""With four bits asked for, matrices that a file has in Q4_1 stay so: nothing is rounded again."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from families import FAMILIES
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from loire.base.config import Quantization
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo
from loire.checkpoint.formats import FORMATS
from loire.checkpoint.open import open_checkpoint
from loire.kernels.interface import Backend
from loire.kernels.native.backend import NativeBackend
from loire.kernels.quantization import q4_1_values
from loire.kernels.reference import ReferenceBackend
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from loire.models.tensors import TensorReader
from support.layers import attention
from support.paged_driver import CPU, DrivenSequence, PagedDriver

usable, why = NativeBackend.available()
BACKENDS = [
    ReferenceBackend,
    pytest.param(NativeBackend, marks=pytest.mark.skipif(not usable, reason=why)),
]
TOKENS = list(range(3, 40))


def quantized(folder: Path, formats: dict[str, str]) -> Checkpoint:
    """A Llama whose matrices are in Q4_1, or in the format given for a projection, and whose
    queries and keys are interleaved as in GGUF."""
    [family] = [family for family in FAMILIES if family.name == "llama_biases"]
    family.save(folder)
    checkpoint = open_checkpoint(folder)
    heads = {
        "q_proj": attention(checkpoint.description).num_heads,
        "k_proj": attention(checkpoint.description).num_kv_heads,
    }
    tensors, reader = dict(checkpoint.tensors), TensorReader(checkpoint.tensors)
    path = folder / "blocks.bin"
    with path.open("wb") as file:
        for name, info in checkpoint.tensors.items():
            if not name.endswith("proj.weight"):
                continue
            part = name.split(".")[-2]
            fmt = formats.get(part, "Q4_1")
            values = interleaved(reader.read(name, torch.float32), heads.get(part, 0)).numpy()
            raw = gguf.quants.quantize(values, GGMLQuantizationType[fmt]).tobytes()
            tensors[name] = TensorInfo(
                name=name,
                shape=info.shape,
                format=FORMATS[fmt],
                path=path,
                offset=file.tell(),
                num_bytes=file.write(raw),
                interleaved_heads=heads.get(part, 0),
            )
    return replace(checkpoint, tensors=tensors)


def interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from halves to pairs."""
    if not num_heads:
        return weight
    rows = torch.arange(len(weight)).view(num_heads, 2, -1).transpose(1, 2).flatten()
    return weight[rows]


def load(checkpoint: Checkpoint, kernels: Backend, quantization: Quantization | None) -> Decoder:
    return load_decoder(
        checkpoint,
        dtype=torch.float32,
        device=CPU,
        backend=kernels,
        max_model_len=64,
        quantization=quantization,
    )


def logits(decoder: Decoder) -> np.ndarray:
    return PagedDriver(decoder).step([(DrivenSequence(), TOKENS)])[0].numpy()


@pytest.mark.parametrize("kernels", BACKENDS)
def test_four_bits_are_those_of_the_file(tmp_path: Path, kernels: type[Backend]) -> None:
    checkpoint = quantized(tmp_path, {})
    stored = load(checkpoint, kernels(), "int4")
    for layer in stored.layers:
        for linear, rows in (
            (layer.mixer.qkv, layer.mixer.qkv.out_features),
            (layer.mixer.output, layer.mixer.output.out_features),
            (layer.feed_forward.gate_up, 2 * layer.feed_forward.gate_up.out_features),
        ):
            assert linear.weight_bytes == rows * linear.in_features // 32 * 20
    # What is left is the rounding of inputs and of the head to eight bits.
    exact = logits(load(checkpoint, ReferenceBackend(), None))
    again = logits(load(requantized(checkpoint), kernels(), "int4"))
    error, error_again = ((found - exact).std() / exact.std() for found in (logits(stored), again))
    assert error < 0.05 < error_again


def requantized(checkpoint: Checkpoint) -> Checkpoint:
    """The same numbers in float32, which int4 rounds by its own rule."""
    reader = TensorReader(checkpoint.tensors)
    tensors, path = dict(checkpoint.tensors), checkpoint.path / "numbers.bin"
    with path.open("wb") as file:
        for name, info in checkpoint.tensors.items():
            if name.endswith("proj.weight"):
                raw = reader.read(name, torch.float32).numpy().tobytes()
                tensors[name] = TensorInfo(
                    name=name,
                    shape=info.shape,
                    format=FORMATS["F32"],
                    path=path,
                    offset=file.tell(),
                    num_bytes=file.write(raw),
                )
    return replace(checkpoint, tensors=tensors)


@pytest.mark.parametrize("kernels", BACKENDS)
def test_matrices_computed_together_must_be_stored_alike(
    tmp_path: Path, kernels: type[Backend]
) -> None:
    checkpoint = quantized(tmp_path, {"v_proj": "Q8_0", "down_proj": "Q5_1"})
    decoder = load(checkpoint, kernels(), "int4")
    mixer, mlp = decoder.layers[0].mixer, decoder.layers[0].feed_forward
    for linear, rows_per_output, block_bytes in (
        (mixer.qkv, 1, 18),
        (mixer.output, 1, 20),
        (mlp.gate_up, 2, 20),
        (mlp.down, 1, 18),
    ):
        rows = linear.out_features * rows_per_output
        assert linear.weight_bytes == rows * linear.in_features // 32 * block_bytes
    exact = logits(load(checkpoint, ReferenceBackend(), None))
    assert (logits(decoder) - exact).std() < 0.5 * exact.std()


def test_nothing_stays_unless_four_bits_are_asked_for(tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, {})
    output = load(checkpoint, ReferenceBackend(), "int8").layers[0].mixer.output
    assert output.weight_bytes == output.out_features * (output.in_features + 4)


def test_what_stays_does_not_lie_in_the_file(tmp_path: Path) -> None:
    """The reference keeps the blocks; the file may be replaced while it computes."""
    checkpoint = quantized(tmp_path, {})
    decoder = load(checkpoint, ReferenceBackend(), "int4")
    before = logits(decoder)
    path = tmp_path / "blocks.bin"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert np.array_equal(logits(decoder), before)


@pytest.mark.parametrize("heads", [0, 2])
def test_rows_in_q4_k_are_read_as_q4_1(tmp_path: Path, heads: int) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (12 * 2, 144), dtype=np.uint8)
    blocks[:, :4] = np.random.default_rng(1).uniform(-1, 1, (24, 2)).astype("<f2").view(np.uint8)
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\xff" * 33 + blocks.tobytes())
    info = TensorInfo(
        name="w",
        shape=(12, 512),
        format=FORMATS["Q4_K"],
        path=path,
        offset=33,
        num_bytes=blocks.size,
        interleaved_heads=heads,
    )
    reader = TensorReader({"w": info})
    rows = reader.read_blocks("w")
    assert rows.shape == (12, 512 // 32 * 20)
    codes, scales, minimums = q4_1_values(rows)
    found = (codes * scales[..., None] + minimums[..., None]).flatten(1)
    exact = reader.read("w", torch.float32)
    assert (found - exact).abs().max() < 1e-3 * exact.abs().max()
