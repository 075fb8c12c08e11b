"""A model that several ranks share computes the same bits as one that takes its sums in as many
chunks."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES

from loire.base.config import WeightQuantization
from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.formats import BLOCK_FORMATS
from loire.checkpoint.huggingface_config import describe
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.sharding import rank_of, share_of, working_sizes
from loire.checkpoint.share import Share, listed, settle_chunks
from loire.checkpoint.weights import Matrix, matrices
from loire.kernels.interface import Meeting
from loire.kernels.native.backend import NativeBackend
from loire.kernels.reference import ReferenceBackend
from loire.models.loading import load_decoder
from loire.planning.model_size import size_of_rank
from support.blocks import blocks_of
from support.paged_driver import CPU, DrivenSequence, PagedDriver
from support.ranks import each_rank, load_share

usable, why = NativeBackend.available()
pytestmark = pytest.mark.skipif(not usable, reason=why)

ALONE = Meeting(0, 1)
TOKENS = [3 + (7 * i * i + i) % 120 for i in range(40)]


def family(name: str, directory: Path) -> Checkpoint:
    [found] = [family for family in FAMILIES if family.name == name]
    found.save(directory)
    return open_checkpoint(directory)


def logits(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    quantization: WeightQuantization,
    meeting: Meeting,
    chunks: int | None = None,
) -> tuple[torch.Tensor, int]:
    """Of two sequences, in company and alone, in pieces; and bytes of the weights."""
    options: dict[str, Any] = {"chunks": chunks, "quantization": quantization}
    decoder = load_share(checkpoint, NativeBackend(1), dtype, meeting, **options)
    driver, one, other = PagedDriver(decoder), DrivenSequence(), DrivenSequence()
    outputs = driver.step([(one, TOKENS[:25]), (other, TOKENS[7:19])], [1, 12])
    for _ in range(2):  # recorded, and replayed
        outputs += driver.step([(one, TOKENS[25:26]), (other, TOKENS[30:31])])
    outputs += driver.step([(one, TOKENS[26:])], [3])
    return torch.cat(outputs), decoder.weight_bytes


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("llama2", (2, 4)),
        ("llama_biases", (2,)),  # of all products; heads by rows
        ("gemma2", (2,)),  # a tied head, windows, norms around
        ("gemma4_per_layer", (2,)),  # keys and values of other layers, embeddings per layer
        ("phi3", (2,)),  # queries, keys and values in one tensor of the file
        ("mixtral", (2,)),
        ("gpt_oss", (2,)),  # experts with biases, sinks
        ("granitemoeshared", (2,)),
        ("deepseek_v3_halves", (2, 4)),  # latent attention, experts in groups
    ],
)
@torch.inference_mode()
def test_shared_is_whole(name: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    check(family(name, tmp_path), sizes)


@pytest.mark.parametrize("kind", ["Q4_K", "int8"])
@torch.inference_mode()
def test_blocks_and_codes_are_shared(kind: WeightQuantization, tmp_path: Path) -> None:
    """An intermediate size of nine blocks: the last of eight chunks has two."""
    [found] = [family for family in FAMILIES if family.name == "llama2"]
    sizes = {"intermediate_size": 9 * 256, "head_dim": 512, "num_hidden_layers": 1}
    replace(found, settings={**found.settings, **sizes}).save(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    if kind == "int8":
        check(checkpoint, (2, 4), kind)
        return
    tensors = dict(checkpoint.tensors)
    with (tmp_path / "blocks.bin").open("wb") as file:
        for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            info = tensors[f"model.layers.0.{name}.weight"]
            if info.shape[1] % 256:
                continue  # of what takes the hidden size
            blocks = blocks_of(kind, info.shape, len(name))
            where = {"path": tmp_path / "blocks.bin", "offset": file.tell()}
            size = {"num_bytes": file.write(blocks.tobytes())}
            tensors[info.name] = replace(info, format=BLOCK_FORMATS[kind], **where, **size)
    check(replace(checkpoint, tensors=tensors), (2, 4))


def check(
    checkpoint: Checkpoint, sizes: tuple[int, ...], quantization: WeightQuantization = "auto"
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        run = partial(logits, checkpoint, dtype, quantization)
        plain, plain_bytes = run(ALONE, 0)
        whole, whole_bytes = run(ALONE, 8)
        # int8 has a scale per output and chunk, instead of one per output.
        tolerance = 1e-4 if (dtype, quantization) == (torch.float32, "auto") else 0.3
        torch.testing.assert_close(whole, plain, atol=tolerance, rtol=tolerance)
        assert plain_bytes <= whole_bytes
        for size in sizes:
            shares = each_rank(size, run)
            assert torch.equal(shares[0][0], whole)
            assert all(num_bytes < whole_bytes for _, num_bytes in shares)


@pytest.mark.parametrize("block", [1, 32])
def test_every_family_is_shared_or_refused_with_what_works(block: int) -> None:
    """Whatever its files hold blocks of. What two ranks have is the whole, and nothing twice."""
    shared = set()
    for family in FAMILIES:
        description = describe(json.loads(family.config().to_json_string()), family.name)

        def share(rank: int, size: int, whole: ModelDescription = description) -> list[Matrix]:
            return list(matrices(share_of(whole, Share(rank, size, 8), lambda matrix: block)[1]))

        works = [1, *working_sizes(description, lambda matrix: block)]
        if 2 not in works:
            with pytest.raises(ConfigError, match=rf"; {listed(works)} works?$"):
                share(1, 2)
            continue
        shared.add(family.name)
        halves = [share(rank, 2) for rank in range(2)]
        for matrix in matrices(description.weights()):
            parts = [part for half in halves for part in half if part.name == matrix.name]
            sizes = [part.num_elements for part in parts]
            if any(part.cut for part in parts):
                sizes = [sum(sizes)]
            assert set(sizes) == {matrix.num_elements}, (family.name, matrix.name)
    assert block > 1 or {"llama2", "gemma3", "mixtral", "deepseek_v3_halves"} <= shared
    assert not {"lfm2", "qwen3_next", "nemotron_h", "llama_single_kv_head"} & shared


def test_sizes_that_do_not_go_are_refused(tmp_path: Path) -> None:
    llama = family("llama31", tmp_path / "llama")  # 4 heads, 2 KV heads
    with pytest.raises(ConfigError, match=r"2 KV heads are no multiple of 4; 1 and 2 work"):
        rank_of(llama, Share(0, 4, settle_chunks(4, None)))
    assert working_sizes(llama.description, lambda matrix: 1) == [2]
    with pytest.raises(ConfigError, match=r"64 inputs in blocks of 32 make no 8 chunks; 1 works"):
        share_of(llama.description, Share(0, 2, 8), lambda matrix: 32)


def test_chunks_go_with_ranks() -> None:
    sizes = (1, 2, 3, 4, 6, 8, 16)
    assert [settle_chunks(size, None) for size in sizes] == [0, 8, 12, 8, 12, 8, 16]
    assert settle_chunks(1, 24) == settle_chunks(3, 24) == settle_chunks(6, 24) == 24
    with pytest.raises(ConfigError, match=r"sums of 12 chunks go with .* 1, 3, 6 and 12, not 2"):
        settle_chunks(2, 12)
    with pytest.raises(ConfigError, match="64 are the most"):
        settle_chunks(17, None)
    with pytest.raises(ConfigError, match="at least 1, but is 0"):
        settle_chunks(0, None)


def test_planned_shares_are_the_loaded_ones(tmp_path: Path) -> None:
    checkpoint = family("llama_head_dim_tied", tmp_path)
    planned = size_of_rank(checkpoint, 2, dtype="float32", quantization=None, kv_dtype="float32")
    for rank in range(2):
        decoder = load_decoder(
            checkpoint,
            dtype=torch.float32,
            device=CPU,
            backend=ReferenceBackend(),
            max_model_len=64,
            share=Share(rank, 2, 8),
        )
        assert planned.weight_bytes == pytest.approx(decoder.weight_bytes, rel=0.02)
        assert planned.kv_bytes_per_token == decoder.description.kv_bytes_per_token("float32")
