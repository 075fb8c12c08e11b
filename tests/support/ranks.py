"""Ranks of one model on threads of this process, as memory is shared by threads, too."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from loire.base.config import WeightQuantization
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.share import Share, settle_chunks
from loire.kernels.interface import Backend, Meeting
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from support.paged_driver import CPU

T = TypeVar("T")


def each_rank(size: int, work: Callable[[Meeting], T]) -> list[T]:
    """What work gives for each rank, all of them at once."""
    memory = os.memfd_create("ranks")
    try:
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(work, [Meeting(rank, size, memory) for rank in range(size)]))
    finally:
        os.close(memory)


def load_share(
    checkpoint: Checkpoint,
    backend: Backend,
    dtype: torch.dtype,
    meeting: Meeting,
    *,
    chunks: int | None = None,
    quantization: WeightQuantization = "auto",
) -> Decoder:
    """A rank's share of a model."""
    chunks = settle_chunks(meeting.size, chunks)
    return load_decoder(
        checkpoint,
        dtype=dtype,
        device=CPU,
        backend=backend,
        max_model_len=256,
        quantization=quantization,
        share=Share(meeting.rank, meeting.size, chunks),
        ranks=backend.join(meeting),
    )
