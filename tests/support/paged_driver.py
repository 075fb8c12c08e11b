"""Runs a decoder over flat batches in a paged cache that is as hostile as the contract allows.

Block ids are handed out in random order, and all memory that no sequence wrote holds NaN.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from loire.base.step import StepPlan, StepRow
from loire.execution.inputs import host_batch, wanted_tokens
from loire.kernels.interface import LayerCache
from loire.models.decoder import Decoder

CPU = torch.device("cpu")


@dataclass
class DrivenSequence:
    """Tokens computed so far, and the blocks that hold them."""

    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


class PagedDriver:
    """Feeds tokens of several sequences into one decoder, any number of rows per step."""

    def __init__(
        self, decoder: Decoder, *, num_blocks: int = 64, block_size: int = 16, seed: int = 0
    ) -> None:
        self.decoder = decoder
        self.block_size = block_size
        self._free = list(range(num_blocks))
        random.Random(seed).shuffle(self._free)
        nan = float("nan")
        dtype = decoder.embedding.dtype
        caches = []
        for need in decoder.description.caches:
            shape = (0,)
            if need is not None:
                shape = (num_blocks, need.num_vectors // 2, block_size, need.vector_size)
            keys, values = (torch.full(shape, nan, dtype=dtype) for _ in range(2))
            caches.append(LayerCache(keys, values))
        self.caches = [caches[owner] for owner in decoder.description.cache_owners]

    @torch.inference_mode()
    def step(
        self,
        rows: Sequence[tuple[DrivenSequence, Sequence[int]]],
        counts: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Append tokens to each row's sequence in one flat batch; float32 logits [Q, V] per row.

        counts: how many of each row's last tokens are wanted; by default all.
        """
        step_rows = []
        for index, (sequence, tokens) in enumerate(rows):
            start = len(sequence.tokens)
            sequence.tokens.extend(tokens)
            while len(sequence.blocks) * self.block_size < len(sequence.tokens):
                sequence.blocks.append(self._free.pop())
            step_rows.append(
                StepRow(
                    seq_id=index,
                    token_ids=tuple(tokens),
                    start=start,
                    samples=True,
                )
            )
        tables = np.zeros((len(rows), max(len(s.blocks) for s, _ in rows)), dtype=np.int32)
        for index, (sequence, _) in enumerate(rows):
            tables[index, : len(sequence.blocks)] = sequence.blocks
        plan_of_step = StepPlan(0, tuple(step_rows))
        host = host_batch(plan_of_step, tables, self.block_size, lambda _: 0)
        nothing = torch.zeros(1, dtype=torch.int64)
        token_ids, batch = self.decoder.backend.transfers.upload(host, nothing)
        plan = self.decoder.backend.attention.plan(batch, self.block_size)
        wanted = None
        if counts is not None:
            backend = self.decoder.backend
            _, wanted = wanted_tokens(host, counts, tables, self.block_size, backend, nothing)
        hidden = self.decoder.forward(token_ids, [batch], [plan], self.caches, wanted)
        return list(self.decoder.logits(hidden).split(list(counts or batch.host_query_lens)))

    def greedy(
        self, prompt: Sequence[int], num_tokens: int, chunks: Sequence[int] = ()
    ) -> list[int]:
        """Greedy continuation of prompt, prefilled in chunks of these lengths, then the rest."""
        sequence = DrivenSequence()
        first = 0
        for length in chunks:
            self.step([(sequence, prompt[first : first + length])])
            first += length
        [logits] = self.step([(sequence, prompt[first:])])
        output = [int(logits[-1].argmax())]
        while len(output) < num_tokens:
            [logits] = self.step([(sequence, output[-1:])])
            output.append(int(logits[-1].argmax()))
        return output


def random_chunks(rng: random.Random, length: int) -> list[int]:
    """Lengths that add up to less than length, so that something is left."""
    chunks = []
    while length > 1:
        chunk = rng.randint(1, length - 1)
        chunks.append(chunk)
        length -= chunk
        if rng.random() < 0.2:
            break
    return chunks
