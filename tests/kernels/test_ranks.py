"""What crosses between ranks: sums in a tree, gathered columns, and news of a loss."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loire.base.errors import EngineError
from loire.kernels.interface import Backend, Meeting, Ranks
from loire.kernels.interface.ranks import added_up
from loire.kernels.native.backend import NativeBackend
from loire.kernels.reference import ReferenceBackend
from support.ranks import each_rank

usable, why = NativeBackend.available()


@pytest.fixture(params=["native", "gloo"])
def joined(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Meeting], Ranks]:
    """Joins a meeting."""
    if request.param == "native" and not usable:
        pytest.skip(why)

    def join(meeting: Meeting) -> Ranks:
        backend: Backend = NativeBackend(1) if request.param == "native" else ReferenceBackend()
        return backend.join(replace(meeting, file=str(tmp_path / "ranks")))

    return join


@pytest.mark.parametrize(("size", "chunks"), [(1, 8), (2, 8), (4, 8), (3, 24)])
def test_any_share_of_a_tree_has_the_same_sum(
    joined: Callable[[Meeting], Ranks], size: int, chunks: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    rounds = [torch.randn(chunks, tokens, 37, generator=generator) for tokens in (1, 5, 300)]
    # More than one round of shared memory.
    rounds.append(torch.randn(chunks, 7, 40_000, generator=generator))
    expected = [added_up(parts.unbind()) for parts in rounds]

    def work(meeting: Meeting) -> list[torch.Tensor]:
        ranks = joined(meeting)
        each = chunks // size
        first = meeting.rank * each
        own = [parts[first : first + each] for parts in rounds]
        sums = [ranks.sum(parts, dtype=torch.float32) for parts in own]
        sums.append(ranks.sum(own[2], dtype=torch.bfloat16))
        return sums

    for sums in each_rank(size, work):
        assert torch.equal(sums[-1], expected[2].bfloat16())
        for found, wanted in zip(sums, expected, strict=False):
            assert torch.equal(found, wanted)


def test_columns_come_to_the_first(joined: Callable[[Meeting], Ranks]) -> None:
    whole = torch.randn(9, 90_001)
    borders = (0, 30_001, 60_000, 90_001)

    def work(meeting: Meeting) -> torch.Tensor:
        first, end = borders[meeting.rank], borders[meeting.rank + 1]
        return joined(meeting).gather(whole[:, first:end], borders)

    found = each_rank(3, work)
    assert torch.equal(found[0], whole)
    assert torch.equal(found[2], whole[:, 60_000:])


@pytest.mark.skipif(not usable, reason=why)
def test_whoever_waits_hears_of_a_loss() -> None:
    memory = os.memfd_create("ranks")
    backend = NativeBackend(1)
    ranks = backend.join(Meeting(0, 2, memory))
    os.close(memory)
    threading.Timer(0.2, ranks.lose).start()
    with pytest.raises(EngineError, match="another rank is lost"):
        ranks.sum(torch.zeros(4, 1, 8), dtype=torch.float32)
    with pytest.raises(EngineError, match="another rank is lost"):
        ranks.gather(torch.zeros(1, 4), (0, 4, 8))
