"""A model that several ranks share computes the same bits as one that takes its sums in as many
chunks."""

from functools import partial
from pathlib import Path

import pytest
import torch
from families import FAMILIES

from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.sharding import Share, rank_of, settle_chunks, share_of, working_sizes
from loire.kernels.interface import Meeting
from loire.kernels.native.backend import NativeBackend
from support.paged_driver import DrivenSequence, PagedDriver
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
    checkpoint: Checkpoint, dtype: torch.dtype, meeting: Meeting, chunks: int | None = None
) -> tuple[torch.Tensor, int]:
    """Of two sequences, in company and alone, in pieces; and bytes of the weights."""
    decoder = load_share(checkpoint, NativeBackend(1), dtype, meeting, chunks=chunks)
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
    ],
)
@torch.inference_mode()
def test_shared_is_whole(name: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    checkpoint = family(name, tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        plain, plain_bytes = logits(checkpoint, dtype, ALONE, 0)
        whole, whole_bytes = logits(checkpoint, dtype, ALONE, 8)
        tolerance = 1e-4 if dtype is torch.float32 else 0.2
        torch.testing.assert_close(whole, plain, atol=tolerance, rtol=tolerance)
        assert plain_bytes <= whole_bytes
        for size in sizes:
            shares = each_rank(size, partial(logits, checkpoint, dtype))
            assert torch.equal(shares[0][0], whole)
            assert all(num_bytes < whole_bytes for _, num_bytes in shares)


def test_sizes_that_do_not_go_are_refused(tmp_path: Path) -> None:
    llama = family("llama31", tmp_path / "llama")  # 4 heads, 2 KV heads
    with pytest.raises(ConfigError, match=r"2 KV heads are no multiple of 4; 1 and 2 work"):
        rank_of(llama, Share(0, 4, settle_chunks(4, None)))
    assert working_sizes(llama.description, lambda matrix: 1) == [2]
    with pytest.raises(ConfigError, match=r"64 inputs in blocks of 32 make no 8 chunks; 1 works"):
        share_of(llama.description, Share(0, 2, 8), lambda matrix: 32)


def test_chunks_go_with_ranks() -> None:
    assert [settle_chunks(size, None) for size in (1, 2, 3, 4, 6, 8, 16)] == [
        0,
        8,
        24,
        8,
        24,
        8,
        16,
    ]
    assert settle_chunks(1, 24) == settle_chunks(3, 24) == settle_chunks(6, 24) == 24
    with pytest.raises(ConfigError, match=r"sums of 24 chunks go with .* 3, 6, 12 and 24, not 2"):
        settle_chunks(2, 24)
    with pytest.raises(ConfigError, match="64 are the most"):
        settle_chunks(11, None)
    with pytest.raises(ConfigError, match="at least 1, but is 0"):
        settle_chunks(0, None)
