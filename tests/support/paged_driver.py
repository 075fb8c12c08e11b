"""Runs a decoder over flat batches in a paged cache that is as hostile as the contract allows.

Page ids are handed out in random order, and all memory that no sequence wrote holds NaN, but for
states, which start from zero.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loire.base.cache_geometry import cache_geometry
from loire.base.step import StepPlan, StepRow
from loire.execution.inputs import group_batches, host_batch, wanted_tokens
from loire.execution.kv_cache import KVCache
from loire.models.decoder import Decoder

CPU = torch.device("cpu")


@dataclass
class DrivenSequence:
    """Tokens computed so far, and the pages that hold them, by cache group."""

    tokens: list[int] = field(default_factory=list)
    tables: list[list[int]] = field(default_factory=list)

    @property
    def blocks(self) -> list[int]:
        """Those of the first group."""
        return self.tables[0]


class PagedDriver:
    """Feeds tokens of several sequences into one decoder, any number of rows per step."""

    def __init__(
        self, decoder: Decoder, *, num_blocks: int = 256, block_size: int = 16, seed: int = 0
    ) -> None:
        self.decoder = decoder
        description = decoder.description
        dtype = decoder.embedding.dtype
        name = str(dtype).removeprefix("torch.")
        self.geometry = cache_geometry(description.cache_needs(name), block_size)
        kernels = decoder.backend.attention
        self._cache = KVCache(description, self.geometry, num_blocks, dtype, kernels, CPU)
        self._cache.pages.view(dtype).fill_(float("nan"))
        self._free = list(range(num_blocks))
        random.Random(seed).shuffle(self._free)
        self.caches = [self._cache.layers[owner] for owner in description.cache_owners]

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
            self._take_pages(sequence)
            step_rows.append(
                StepRow(
                    seq_id=index,
                    token_ids=tuple(tokens),
                    start=start,
                    samples=True,
                )
            )
        sizes = [group.block_size for group in self.geometry.groups]
        tables = [self._tables(rows, index) for index in range(len(sizes))]
        host = host_batch(StepPlan(0, tuple(step_rows)), tables[0], sizes[0], lambda _: 0)
        nothing = torch.zeros(1, dtype=torch.int64)
        backend = self.decoder.backend
        token_ids, first = backend.transfers.upload(host, nothing)
        batches = group_batches(host, first, tables[1:], sizes[1:])
        plans = [
            backend.attention.plan(batch, size) if size else backend.recurrent.plan(batch)
            for batch, size in zip(batches, sizes, strict=True)
        ]
        wanted = None
        if counts is not None:
            groups = sorted({self.caches[i].group for i in self.decoder.wanted_caches})
            _, wanted = wanted_tokens(host, counts, tables, sizes, groups, backend, nothing)
        hidden = self.decoder.forward(token_ids, batches, plans, self.caches, wanted)
        return list(self.decoder.logits(hidden).split(list(counts or first.host_query_lens)))

    def _take_pages(self, sequence: DrivenSequence) -> None:
        groups = self.geometry.groups
        sequence.tables = sequence.tables or [[] for _ in groups]
        for group, table in zip(groups, sequence.tables, strict=True):
            needed = group.blocks_for(len(sequence.tokens))
            if group.kind == "state":
                needed = group.pages_per_state
            new = [self._free.pop() for _ in range(needed - len(table))]
            if group.kind == "state":
                self._cache.zero(new)
            table += new

    def _tables(
        self, rows: Sequence[tuple[DrivenSequence, Sequence[int]]], group: int
    ) -> NDArray[np.int32]:
        found = [sequence.tables[group] for sequence, _ in rows]
        tables = np.zeros((len(rows), max(map(len, found))), dtype=np.int32)
        for index, table in enumerate(found):
            tables[index, : len(table)] = table
        return tables

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
