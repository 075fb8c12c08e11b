"""Texts computed whole, in one step and with caches of their own: for what looks at a model rather
than serves it."""

from collections.abc import Sequence

import torch

from loire.base.step import StepPlan, StepRow
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.mixers import CacheNeed
from loire.execution.inputs import group_batches, host_batch
from loire.kernels.interface import (
    AttentionPlan,
    Backend,
    FlatBatch,
    LayerCache,
    StateCache,
    StatePlaces,
)

BLOCK = 16
ALIGNMENT = 64
"""Bytes."""
_TOKENS, _STATES = 0, 1
"""Cache groups."""


class WholeTexts:
    """A batch of some texts of one length, on the host."""

    def __init__(
        self, description: ModelDescription, backend: Backend, texts: Sequence[Sequence[int]]
    ) -> None:
        """texts: token ids, all of the same length."""
        self._count, self._per_text = len(texts), -(-len(texts[0]) // BLOCK)
        self._needs = description.caches
        self._owners = description.cache_owners
        rows = tuple(
            StepRow(index, tuple(ids), 0, samples=False) for index, ids in enumerate(texts)
        )
        tables = torch.arange(self._count * self._per_text, dtype=torch.int32)
        host = host_batch(
            StepPlan(0, rows), tables.view(self._count, -1).numpy(), BLOCK, lambda _: 0
        )
        self.token_ids, first = backend.transfers.upload(host, torch.zeros(1, dtype=torch.int64))
        """int64 [T]."""
        slots = torch.arange(self._count, dtype=torch.int32)[:, None]
        self.batches: tuple[FlatBatch, ...] = group_batches(host, first, [slots.numpy()], [0])
        """By cache group."""
        has_states = any(need is not None and need.kind == "state" for need in self._needs)
        self.plans: tuple[AttentionPlan | None, ...] = (
            backend.attention.plan(first, BLOCK),
            backend.recurrent.plan(self.batches[_STATES]) if has_states else None,
        )
        """By cache group."""

    def caches(self, dtype: torch.dtype) -> tuple[LayerCache | StateCache, ...]:
        """New ones by layer; one that uses another's has that."""
        own = [self.cache(layer, dtype) for layer in range(len(self._needs))]
        return tuple(own[owner] for owner in self._owners)

    def cache(self, layer: int, dtype: torch.dtype) -> LayerCache | StateCache:
        """A new one; of a layer that keeps nothing, nothing."""
        need = self._needs[layer]
        if need is None or self._owners[layer] != layer:
            return LayerCache(torch.empty(0), torch.empty(0))
        if need.kind == "state":
            return self._states(need)
        is_latent = need.kind == "latent"
        heads = need.num_vectors if is_latent else need.num_vectors // 2
        shape = (self._count * self._per_text, heads, BLOCK, need.vector_size)
        keys = torch.zeros(shape, dtype=dtype)
        values = keys if is_latent else torch.zeros(shape, dtype=dtype)
        return LayerCache(keys, values, group=_TOKENS)

    def _states(self, need: CacheNeed) -> StateCache:
        """Of each text one page, in which all arrays lie."""
        arrays, end = [], 0
        for part in need.state:
            places = []
            for _ in range(part.count):
                places.append((0, end))
                end += -(-part.array_bytes // ALIGNMENT) * ALIGNMENT
            arrays.append(StatePlaces(part.shape, tuple(places)))
        pages = torch.zeros(self._count, end, dtype=torch.uint8)
        return StateCache(pages, tuple(arrays), _STATES)
