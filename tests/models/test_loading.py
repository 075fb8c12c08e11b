"""Weights from files into a decoder: every tensor used, of the right shape, with the right bits."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from families import FAMILIES
from gguf.constants import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo
from loire.checkpoint.formats import FORMATS
from loire.checkpoint.open import open_checkpoint
from loire.kernels import dequantize
from loire.kernels.reference import ReferenceBackend
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from loire.models.tensors import TensorReader
from support.paged_driver import CPU, DrivenSequence, PagedDriver

PLAIN = ("F32", "F16", "BF16")
QUANTIZED = sorted(set(FORMATS) - set(PLAIN))
TOKENS = list(range(3, 40))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with grouped heads, biases everywhere and an output of its own."""
    [family] = [family for family in FAMILIES if family.name == "llama_biases"]
    path = tmp_path_factory.mktemp("llama")
    family.save(path)
    return path


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(
        checkpoint, dtype=dtype, device=CPU, backend=ReferenceBackend(), max_model_len=64
    )


def logits(decoder: Decoder) -> Tensor:
    return PagedDriver(decoder).step([(DrivenSequence(), TOKENS)])[0]


def rewritten(directory: Path, target: Path, change: dict[str, Tensor | None]) -> Path:
    """A copy of the model with tensors replaced, added, or (None) left out."""
    weights = {**load_file(directory / "model.safetensors"), **change}
    target.mkdir(exist_ok=True)
    (target / "config.json").write_bytes((directory / "config.json").read_bytes())
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, target / "model.safetensors")
    return target


# --- names and shapes -----------------------------------------------------------------------------

LAYER = "model.layers.1."


def test_missing_tensors_are_named(directory: Path, tmp_path: Path) -> None:
    change = {f"{LAYER}self_attn.k_proj.bias": None, "model.norm.weight": None}
    path = rewritten(directory, tmp_path, change)
    with pytest.raises(CheckpointError) as error:
        load(open_checkpoint(path))
    message = str(error.value)
    assert "2 missing" in message
    assert "0 unused" in message
    assert all(name in message for name in change)
    assert str(path) in message


def test_unused_tensors_are_named(directory: Path, tmp_path: Path) -> None:
    name = f"{LAYER}self_attn.q_norm.weight"
    path = rewritten(directory, tmp_path, {name: torch.ones(16)})
    with pytest.raises(CheckpointError, match=f"0 missing; 1 unused .{name}"):
        load(open_checkpoint(path))


@pytest.mark.parametrize(
    ("name", "shape", "needed"),
    [
        (f"{LAYER}self_attn.k_proj.weight", (64, 64), (32, 64)),
        (f"{LAYER}mlp.down_proj.weight", (96, 64), (64, 96)),
        (f"{LAYER}self_attn.o_proj.bias", (63,), (64,)),
        ("model.embed_tokens.weight", (127, 64), (128, 64)),
        ("model.norm.weight", (64, 1), (64,)),
    ],
)
def test_wrong_shapes_are_named_with_both(
    directory: Path, tmp_path: Path, name: str, shape: tuple[int, ...], needed: tuple[int, ...]
) -> None:
    path = rewritten(directory, tmp_path, {name: torch.zeros(shape)})
    with pytest.raises(CheckpointError) as error:
        load(open_checkpoint(path))
    assert all(str(part) in str(error.value) for part in (name, shape, needed))


def test_fused_projections_are_the_same_model(directory: Path, tmp_path: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    change: dict[str, Tensor | None] = {}
    for layer in range(3):
        for part, fused, names in (
            ("self_attn", "qkv_proj", ("q_proj", "k_proj", "v_proj")),
            ("mlp", "gate_up_proj", ("gate_proj", "up_proj")),
        ):
            for kind in ("weight", "bias"):
                parts = [f"model.layers.{layer}.{part}.{name}.{kind}" for name in names]
                change |= dict.fromkeys(parts)
                change[f"model.layers.{layer}.{part}.{fused}.{kind}"] = torch.cat(
                    [weights[name] for name in parts]
                )
    fused_path = rewritten(directory, tmp_path, change)
    assert torch.equal(
        logits(load(open_checkpoint(fused_path))), logits(load(open_checkpoint(directory)))
    )


def test_an_output_that_repeats_the_embedding_is_dropped(directory: Path, tmp_path: Path) -> None:
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    path = rewritten(directory, tmp_path, {"lm_head.weight": embedding.clone()})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    repeated = load(open_checkpoint(path))
    tied = load(open_checkpoint(rewritten(path, tmp_path / "tied", {"lm_head.weight": None})))
    assert repeated.weight_bytes == tied.weight_bytes
    assert torch.equal(logits(repeated), logits(tied))


def test_progress_rises_to_one(directory: Path) -> None:
    seen: list[float] = []
    load_decoder(
        open_checkpoint(directory),
        dtype=torch.bfloat16,
        device=CPU,
        backend=ReferenceBackend(),
        max_model_len=64,
        progress=seen.append,
    )
    assert seen == sorted(seen)
    assert len(seen) == 4
    assert seen[-1] == 1.0


def test_nothing_points_into_the_file(directory: Path, tmp_path: Path) -> None:
    """A model goes on as it was when its file is overwritten or gone."""
    path = rewritten(directory, tmp_path, {})
    decoder = load(open_checkpoint(path))
    before = logits(decoder)
    file = path / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    assert torch.equal(logits(decoder), before)


def test_the_pages_of_a_file_are_let_go_once_weights_are_made_of_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every tensor, once each, after its last reading; the model is as it would be."""
    expected, events = logits(load(open_checkpoint(directory))), []
    read, let_go = TensorReader.read, TensorReader.let_go

    def noted_read(self: TensorReader, name: str, *args: object, **options: object) -> Tensor:
        events.append(("read", name))
        return read(self, name, *args, **options)  # type: ignore[arg-type]

    def noted_let_go(self: TensorReader, name: str) -> None:
        events.append(("let go", name))
        let_go(self, name)

    monkeypatch.setattr(TensorReader, "read", noted_read)
    monkeypatch.setattr(TensorReader, "let_go", noted_let_go)
    checkpoint = open_checkpoint(directory)
    assert torch.equal(logits(load(checkpoint)), expected)
    names = checkpoint.tensors.keys()
    for name in names - {"model.norm.weight"}:  # a vector, left to the end of the process
        assert [event for event, of in events if of == name] == ["read", "let go"], name


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts pages in Linux's list")
def test_what_was_let_go_is_no_memory_of_the_process(tmp_path: Path) -> None:
    path, size = tmp_path / "weights.bin", 4 << 20
    values = torch.randn(2, size // 4)
    path.write_bytes(values.numpy().tobytes())
    infos = [info_of(path, name, "F32", (1, size // 4), at) for name, at in (("a", 0), ("b", size))]
    reader = TensorReader({info.name: info for info in infos})

    def resident() -> int:
        """Bytes of the map that are in memory."""
        lines = Path("/proc/self/smaps").read_text().split(str(path))[1].splitlines()
        [rss] = [line for line in lines[:6] if line.startswith("Rss:")]
        return int(rss.split()[1]) * 1024

    assert torch.equal(reader.read("a", torch.float32)[0], values[0])
    assert torch.equal(reader.read("b", torch.float32)[0], values[1])
    assert resident() > size
    reader.let_go("a")
    assert resident() <= size
    assert torch.equal(reader.read("a", torch.float32)[0], values[0])


def test_a_file_that_shrank_since_it_was_opened(directory: Path, tmp_path: Path) -> None:
    path = rewritten(directory, tmp_path, {})
    checkpoint = open_checkpoint(path)
    file = path / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=f"ends at byte {size - 1000}"):
        load(checkpoint)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="ends at byte 0"):
        load(checkpoint)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(checkpoint)


def test_weight_bytes_count_what_is_held(directory: Path) -> None:
    decoder = load(open_checkpoint(directory), torch.bfloat16)
    per_layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
    assert decoder.bytes_per_step() == 2 * (3 * per_layer + 128 * 64)
    assert decoder.weight_bytes == decoder.bytes_per_step() + 2 * 128 * 64


# --- bits -----------------------------------------------------------------------------------------


def info_of(path: Path, name: str, fmt: str, shape: tuple[int, ...], offset: int) -> TensorInfo:
    num_elements = int(np.prod(shape))
    return TensorInfo(
        name=name,
        shape=shape,
        format=FORMATS[fmt],
        path=path,
        offset=offset,
        num_bytes=FORMATS[fmt].num_bytes(num_elements),
    )


def valid_blocks(fmt: str, num_blocks: int, rng: np.random.Generator) -> bytes:
    """Random blocks. Their float16 scales are made moderate; all other bits are free."""
    blocks = rng.integers(0, 256, (num_blocks, FORMATS[fmt].block_bytes), dtype=np.uint8)
    scales_at = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
                 "Q3_K": (108,), "Q2_K": (80, 82), "MXFP4": ()}  # fmt: skip
    for at in scales_at.get(fmt, (0,)):
        scales = rng.uniform(-1, 1, num_blocks).astype("<f2")
        blocks[:, at : at + 2] = scales[:, None].view(np.uint8)
    if fmt == "MXFP4":
        blocks[:, 0] = 100 + blocks[:, 0] % 40
    return blocks.tobytes()


@pytest.mark.parametrize("fmt", QUANTIZED)
@pytest.mark.parametrize("offset", [0, 64, 33])
def test_block_formats_are_what_the_gguf_library_makes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: str, offset: int
) -> None:
    monkeypatch.setattr(dequantize, "CHUNK_ELEMENTS", 5 * 512)  # twelve rows in three pieces
    shape = (12, 512)
    num_blocks = 12 * 512 // FORMATS[fmt].block_elements
    raw = valid_blocks(fmt, num_blocks, np.random.default_rng(offset))
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\xff" * offset + raw + b"\xff" * 10)
    rows = np.frombuffer(raw, np.uint8).reshape(shape[0], -1)
    expected = torch.from_numpy(gguf.quants.dequantize(rows, GGMLQuantizationType[fmt]))
    assert expected.isfinite().all()
    assert len(expected.unique()) > (100 if fmt == "MXFP4" else 800)
    reader = TensorReader({"w": info_of(path, "w", fmt, shape, offset)})
    assert torch.equal(reader.read("w", torch.float32), expected)
    assert torch.equal(reader.read("w", torch.bfloat16), expected.to(torch.bfloat16))


@pytest.mark.parametrize("fmt", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_values_come_back(tmp_path: Path, fmt: str) -> None:
    """Against the original numbers, not only against the library's own opinion."""
    values = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    path = tmp_path / "weights.bin"
    path.write_bytes(gguf.quants.quantize(values, GGMLQuantizationType[fmt]).tobytes())
    read = TensorReader({"w": info_of(path, "w", fmt, (8, 64), 0)}).read("w", torch.float32)
    steps = {"Q8_0": 127, "Q4_0": 8, "Q4_1": 7, "Q5_0": 16, "Q5_1": 15}[fmt]
    assert np.abs(read.numpy() - values).max() < 1.01 * np.abs(values).max() / steps


@pytest.mark.parametrize("offset", [0, 7, 4096])
@pytest.mark.parametrize("fmt", PLAIN)
def test_plain_formats_keep_every_bit(tmp_path: Path, fmt: str, offset: int) -> None:
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[fmt]
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\xff" * offset + bytes(values.view(torch.uint8).flatten().tolist()))
    reader = TensorReader({"w": info_of(path, "w", fmt, (5, 7), offset)})
    assert torch.equal(reader.read("w", dtype), values)
    assert torch.equal(reader.read("w", torch.float32), values.float())
    assert reader.read("w", torch.bfloat16).is_contiguous()


@pytest.mark.parametrize("shape", [(12,), (12, 3)])
def test_interleaved_heads_come_apart(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Weights and biases; the permutation is written out by hand for two heads of six."""
    values = torch.arange(12.0).view(12, *(1 for _ in shape[1:])).expand(shape)
    path = tmp_path / "weights.bin"
    path.write_bytes(struct.pack(f"<{values.numel()}f", *values.flatten().tolist()))
    info = replace(info_of(path, "w", "F32", shape, 0), interleaved_heads=2)
    read = TensorReader({"w": info}).read("w", torch.float32)
    order = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(read, values[order])
