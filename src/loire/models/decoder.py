"""The decoder: every supported family is this one stack of layers, with other parts in them.

Shapes: T tokens of the flat batch, E hidden size, V vocabulary. The operations are the backend's;
nothing here knows a device, a weight format or a batching policy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from loire.checkpoint.description import ModelDescription
from loire.checkpoint.weights import Matrix
from loire.kernels.interface import (
    AttentionPlan,
    Backend,
    ComputeStep,
    FlatBatch,
    LayerCache,
    Linear,
    StateCache,
    Table,
    Wanted,
)
from loire.models.adaptable import Adaptable
from loire.models.per_layer import PerLayerEmbedding, PerLayerInput

Remembered = Tensor | tuple[Tensor, ...]
"""Of each token something: tensors [T, ...]."""


class Mixer(Protocol):
    """The part of a layer in which a token sees those before it. It computes in two halves.

    After the first, the layer's memory holds what later steps need of all tokens of this one; the
    second may be computed for some of the tokens only.
    """

    def remember(
        self,
        x: Tensor,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Remembered:
        """Put into the cache what is kept of x [T, E]; what recall() needs."""
        ...

    def recall(
        self,
        remembered: Any,
        backend: Backend,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: LayerCache | StateCache,
    ) -> Tensor:
        """[T, E] of what remember() gave for these tokens, with a batch and a plan of them."""
        ...

    @property
    def is_replayable(self) -> bool:
        """Whether it calls the same operations of the backend every time, and does nothing else,
        so that these may be recorded."""
        ...

    def bytes_per_step(self, num_tokens: int) -> int:
        """Bytes of weights that a step of so many tokens reads."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its weights."""
        ...


class FeedForward(Protocol):
    """The part of a layer that computes on each token alone."""

    @property
    def is_replayable(self) -> bool:
        """As a mixer's."""
        ...

    def __call__(self, x: Tensor, batch: FlatBatch) -> Tensor:
        """[T, E] of the batch's tokens to [T, E]."""
        ...

    def bytes_per_step(self, num_tokens: int) -> int:
        """Bytes of weights that a step of so many tokens reads."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its weights."""
        ...


@dataclass(frozen=True, slots=True)
class Norms:
    """RMSNorms before and after a part of a layer: float32 [E], offset included."""

    before: Tensor | None
    """None: the part gets the hidden states as they are, rounded."""
    after: Tensor | None = None
    scale: float = 1.0
    """What hidden states are multiplied by when the part's result has been added."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A mixer, a feed-forward part, a part for embeddings that come per layer; any may be absent.

    cache_of: whose cache it uses.
    """

    mixer: Mixer | None
    mixer_norms: Norms | None
    feed_forward: FeedForward | None
    feed_forward_norms: Norms | None
    cache_of: int
    per_layer_input: PerLayerInput | None = None
    per_layer_norms: Norms | None = None

    @property
    def parts(self) -> Iterator[Mixer | FeedForward | PerLayerInput]:
        """Those that there are."""
        for part in (self.mixer, self.feed_forward, self.per_layer_input):
            if part is not None:
                yield part

    @property
    def norms(self) -> Iterator[Norms]:
        """Of the parts that there are."""
        for norms in (self.mixer_norms, self.feed_forward_norms, self.per_layer_norms):
            if norms is not None:
                yield norms


@dataclass(frozen=True, slots=True)
class LayerStack:
    """The embedding, all layers and the final norm."""

    backend: Backend
    embedding: Table
    """[V, E]."""
    embedding_scale: float
    layers: tuple[Layer, ...]
    last_keeper: int
    """The last layer that keeps anything of a token."""
    final_norm: Tensor
    stream_eps: float
    """eps of norms of the residual stream, which may be kept in another unit."""
    post_eps: float
    """eps of norms after parts."""
    per_layer: PerLayerEmbedding | None = None
    embedding_norm: Tensor | None = None
    """float32 [E]: embeddings are normalised with it before they go anywhere."""

    def __call__(
        self,
        caches: Sequence[LayerCache | StateCache],
        token_ids: Tensor,
        batches: Sequence[FlatBatch],
        plans: Sequence[AttentionPlan | None],
        wanted: Wanted | None,
    ) -> Tensor:
        """Hidden states of all tokens [T, E], or of the wanted.

        By nothing but the backend's operations, where all are wanted: see Backend.capture.
        """
        backend = self.backend
        norms = [norm for layer in self.layers for norm in layer.norms]
        # What each part's result goes into is normalised for the part that follows.
        following = iter([*(norm.before for norm in norms[1:]), self.final_norm])
        # The residual stream stays in float32: rounding it to bfloat16 twice per layer costs a
        # small model near-ties, and it is no more than E numbers per token.
        x, residual, vectors = self._embed(token_ids, batches[0], norms[0].before)

        def add(x: Tensor, residual: Tensor, norms: Norms) -> tuple[Tensor, Tensor]:
            if norms.after is not None:
                x = backend.pointwise.rms_norm(x, norms.after, self.post_eps)
            return backend.pointwise.add_rms_norm(
                x, residual, next(following), self.stream_eps, norms.scale
            )

        for index, layer in enumerate(self.layers):
            if layer.mixer is not None and layer.mixer_norms is not None:
                cache = caches[layer.cache_of]
                batch, plan = batches[cache.group], plans[cache.group]
                remembered = layer.mixer.remember(x, backend, batch, plan, cache)
                if wanted is not None and index == self.last_keeper:
                    if not wanted.batches:
                        return x[:0]
                    remembered = _of_tokens(remembered, wanted.tokens)
                    residual = residual[wanted.tokens]
                    vectors = None if vectors is None else vectors[wanted.tokens]
                    batches, plans = wanted.batches, wanted.plans
                    batch, plan = batches[cache.group], plans[cache.group]
                x = layer.mixer.recall(remembered, backend, batch, plan, cache)
                x, residual = add(x, residual, layer.mixer_norms)
            if layer.feed_forward is not None and layer.feed_forward_norms is not None:
                x = layer.feed_forward(x, batches[0])
                x, residual = add(x, residual, layer.feed_forward_norms)
            part = layer.per_layer_input
            if part is not None and layer.per_layer_norms is not None and vectors is not None:
                size = vectors.shape[1] // len(self.layers)
                own = vectors[:, index * size : (index + 1) * size]
                x = part(x, own, backend, batches[0])
                x, residual = add(x, residual, layer.per_layer_norms)
        return x

    def _embed(
        self, token_ids: Tensor, batch: FlatBatch, norm: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The first part's input [T, E], the residual stream [T, E], vectors per layer."""
        pointwise, scale, eps = self.backend.pointwise, self.embedding_scale, self.stream_eps
        if self.embedding_norm is not None:
            normed, _ = pointwise.embed(token_ids, self.embedding, scale, self.embedding_norm, eps)
            # The stream begins with what was normalised: nothing, to which that is added.
            _, nothing = pointwise.embed(token_ids, self.embedding, 0.0, None, eps)
            return *pointwise.add_rms_norm(normed, nothing, norm, eps), None
        if self.per_layer is None:
            return *pointwise.embed(token_ids, self.embedding, scale, norm, eps), None
        x, residual = pointwise.embed(token_ids, self.embedding, scale, None, eps)
        vectors = self.per_layer(token_ids, x, self.backend, batch)
        return x if norm is None else pointwise.rms_norm(x, norm, eps), residual, vectors


def _of_tokens(remembered: Remembered, tokens: Tensor) -> Remembered:
    if isinstance(remembered, Tensor):
        return remembered[tokens]
    return tuple(part[tokens] for part in remembered)


class Decoder:
    """A loaded model. forward() gives hidden states, logits() turns some of them into logits."""

    def __init__(
        self,
        description: ModelDescription,
        backend: Backend,
        embedding: Table,
        layers: Sequence[Layer],
        final_norm: Tensor,
        head: Linear,
        per_layer: PerLayerEmbedding | None = None,
        adaptable: Mapping[str, Adaptable] = MappingProxyType({}),
        whole: ModelDescription | None = None,
        cuts: Mapping[str, Matrix] = MappingProxyType({}),
    ) -> None:
        """adaptable: weights by their names, for adapters.

        whole: the model of which description is a rank's share. cuts: by their names, the weights
        of which only a part is here."""
        self.description = description
        self.whole = whole or description
        self.cuts = cuts
        self.held = ""
        """In what its matrices are held, in words, where it was loaded from a file."""
        self.backend = backend
        self.embedding = embedding
        self.layers = tuple(layers)
        self.head = head
        self.per_layer = per_layer
        self.adaptable = adaptable
        # Rounded to the model's dtype, as the models were trained with it.
        scale = float(torch.tensor(description.embedding_scale, dtype=embedding.dtype))
        # Instead of multiplying what every part adds to the stream, the stream is kept divided by
        # that: nothing sees it but norms, which do not look at its unit if their eps has it too.
        unit = description.residual_multiplier
        self._stack = LayerStack(
            backend=backend,
            embedding=embedding,
            embedding_scale=scale / unit,
            layers=self.layers,
            last_keeper=description.last_keeper,
            final_norm=final_norm,
            stream_eps=description.norm_eps / unit**2,
            post_eps=(
                description.norm_eps
                if description.post_norm_eps is None
                else description.post_norm_eps
            ),
            per_layer=per_layer,
            embedding_norm=torch.ones_like(final_norm) if description.embedding_norm else None,
        )
        self._captured: tuple[Sequence[LayerCache | StateCache], ComputeStep] | None = None

    @property
    def wanted_caches(self) -> tuple[int, ...]:
        """Whose caches are read for wanted tokens alone (see Wanted), by layer."""
        layers = self.layers[self.description.last_keeper :]
        return tuple(layer.cache_of for layer in layers if layer.mixer is not None)

    def bytes_per_step(self, num_tokens: int = 1) -> int:
        """Bytes of weights that a step of so many tokens reads: all but embeddings, of which it
        reads rows."""
        parts = (part for layer in self.layers for part in layer.parts)
        shared = 0 if self.per_layer is None else self.per_layer.projection.weight_bytes
        return (
            self.head.weight_bytes + shared + sum(part.bytes_per_step(num_tokens) for part in parts)
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as held in memory."""
        table = self.embedding
        if table is self.head or table is getattr(self.head, "weight", None):
            embedding = 0
        else:
            embedding = table.nbytes if isinstance(table, Tensor) else table.weight_bytes
        if self.per_layer is not None:
            embedding += self.per_layer.weight_bytes
        parts = (part for layer in self.layers for part in layer.parts)
        return embedding + self.head.weight_bytes + sum(part.weight_bytes for part in parts)

    def forward(
        self,
        token_ids: Tensor,
        batches: Sequence[FlatBatch],
        plans: Sequence[AttentionPlan | None],
        caches: Sequence[LayerCache | StateCache],
        wanted: Wanted | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, [T, E] of token_ids (int64 [T]) or of the wanted.

        batches, plans: one per cache group. caches: by layer, for those that keep something.
        """
        if self._captured is None or self._captured[0] is not caches:
            compute: ComputeStep = partial(self._stack, caches)
            if all(part.is_replayable for layer in self.layers for part in layer.parts):
                compute = self.backend.capture(compute)
            self._captured = caches, compute
        return self._captured[1](token_ids, batches, plans, wanted)

    def logits(self, hidden: Tensor, batch: FlatBatch | None = None) -> Tensor:
        """float32 [L, V] of hidden states [L, E]. batch: of these tokens, if any has an adapter."""
        logits = self.head(hidden, batch, wide=True)
        if self.description.logit_divisor != 1.0:
            logits = logits / self.description.logit_divisor
        cap = self.description.logit_softcap
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits
