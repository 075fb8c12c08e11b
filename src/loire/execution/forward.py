"""The layers over a step's tokens: from arrays to hidden states.

What decides nothing and samples nothing, so that every rank of a model that several compute can do
it (see loire.kernels.interface.ranks): rank 0 tells the others what it computes itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loire.base.errors import RankLostError
from loire.execution.inputs import group_batches, wanted_tokens
from loire.execution.kv_cache import KVCache
from loire.kernels.interface import FlatBatch, HostBatch
from loire.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step's layers compute with, without a word on whose it is."""

    batch: HostBatch
    """As the first cache group has it."""
    tables: Sequence[NDArray[np.int32]]
    """Block tables of each cache group, [R, M]."""
    wanted: Sequence[int] | None
    """Of how many tokens of each row, its last ones, hidden states are asked for; None: of all."""
    copies: Sequence[tuple[int, int]] = ()
    """And what follows: as in a StepPlan."""
    zeroed: Sequence[int] = ()
    snapshots: Sequence[tuple[int, int]] = ()


class OtherRanks(Protocol):
    """The other ranks, seen from rank 0. They compute what they are told, in order.

    Raise RankLostError when one of them is lost.
    """

    def compute(self, inputs: StepInputs) -> None:
        """Begin a step, none of whose tokens is pending."""
        ...

    def logits(self, tokens: Sequence[int]) -> None:
        """Begin the logits behind tokens of that step, indices of its hidden states."""
        ...

    def adapt(self, number: int, path: str | None) -> None:
        """From now on tokens of adapter `number` have the one in this directory; None: none."""
        ...

    def lose(self, why: str) -> str:
        """End them: a step that they wait in will not go on. Why they are lost, or were before."""
        ...


class Logits:
    """The way from hidden states of a step to logits."""

    def __init__(self, decoder: Decoder, other_ranks: OtherRanks | None = None) -> None:
        self.decoder = decoder
        self._others = other_ranks

    def __call__(
        self, hidden: Tensor, tokens: Sequence[int], batch: FlatBatch | None = None
    ) -> Tensor:
        """float32 [L, V] behind tokens, ascending indices of a step's hidden states [W, E].

        batch: of these tokens, if any has an adapter. Raises RankLostError if the other ranks do
        not go along.
        """
        chosen = hidden
        if len(tokens) < hidden.shape[0]:
            chosen = hidden[torch.tensor(tokens, device=hidden.device)]
        if self._others is None:
            return self.decoder.logits(chosen, batch)
        self._others.logits(tokens)
        try:
            return self.decoder.logits(chosen, batch)
        except BaseException as error:
            raise _lost(self._others, error) from error


class ForwardPass:
    """A decoder with its KV memory."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, other_ranks: OtherRanks | None = None
    ) -> None:
        self.decoder = decoder
        self.cache = cache
        self.block_sizes = [group.block_size for group in cache.geometry.groups]
        self._wanted_groups = sorted({cache.layers[i].group for i in decoder.wanted_caches})
        self.logits = Logits(decoder, other_ranks)
        self._others = other_ranks

    def __call__(self, inputs: StepInputs, latest: Tensor) -> tuple[Tensor, HostBatch]:
        """Hidden states [W, E], and the batch of their tokens. latest: as upload() takes it.

        Raises RankLostError if the other ranks do not go along.
        """
        if self._others is None:
            return self._compute(inputs, latest)
        self._others.compute(replace(inputs, batch=_known(inputs.batch, latest)))
        try:
            return self._compute(inputs, latest)
        except BaseException as error:
            raise _lost(self._others, error) from error

    def _compute(self, inputs: StepInputs, latest: Tensor) -> tuple[Tensor, HostBatch]:
        backend, host, sizes = self.decoder.backend, inputs.batch, self.block_sizes
        self.cache.copy(inputs.copies)
        self.cache.zero(inputs.zeroed)
        tokens, first = backend.transfers.upload(host, latest)
        batches = group_batches(host, first, inputs.tables[1:], sizes[1:])
        plans = [
            backend.attention.plan(batch, size) if size else backend.recurrent.plan(batch)
            for batch, size in zip(batches, sizes, strict=True)
        ]
        known, wanted = host, None
        if inputs.wanted is not None:
            known, wanted = wanted_tokens(
                host, inputs.wanted, inputs.tables, sizes, self._wanted_groups, backend, latest
            )
        hidden = self.decoder.forward(tokens, batches, plans, self.cache.layers, wanted)
        self.cache.copy(inputs.snapshots)
        return hidden, known


def _known(host: HostBatch, latest: Tensor) -> HostBatch:
    """The same with its pending tokens."""
    if host.pending is None:
        return host
    places = host.pending
    tokens = np.where(places >= 0, latest.numpy()[places], host.token_ids)
    return replace(host, token_ids=tokens, pending=None)


def _lost(others: OtherRanks, error: BaseException) -> RankLostError:
    """The others wait within a step that this rank has left."""
    return RankLostError(others.lose(f"a step failed at rank 0: {error}"))
