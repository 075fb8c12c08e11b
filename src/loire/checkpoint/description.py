"""What a decoder-only model is made of: enough to build it, size it and plan for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from loire.base.cache_geometry import LayerNeed
from loire.checkpoint.feed_forward import (
    Activation,
    FeedForwardDescription,
    GatedMLPDescription,
    ParallelDescription,
)
from loire.checkpoint.mixers import (
    AttentionDescription,
    CacheNeed,
    MixerDescription,
    QueryGrowth,
    RopeDescription,
)
from loire.checkpoint.per_layer import (
    PerLayerEmbeddingDescription,
    PerLayerEmbeddingWeights,
    PerLayerInputDescription,
    PerLayerInputWeights,
)
from loire.checkpoint.weights import Matrix, Place, Vector

NormPlacement = Literal["before", "around", "after", "single"]
"""Where a part's RMSNorms stand: before it (Llama), before and after it (Gemma), after it alone
(OLMo 2), or before the only part of its layer, by one name whatever that is (Nemotron-H)."""


@dataclass(frozen=True, slots=True)
class PartNorms:
    """Norms of one part of a layer."""

    before: Vector | None
    """None: the part normalises what goes in itself."""
    after: Vector | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """All weights of a layer. Those of the parts are what the parts' descriptions say."""

    mixer_norms: PartNorms | None
    mixer: object
    feed_forward_norms: PartNorms | None
    feed_forward: object
    per_layer_norms: PartNorms | None = None
    per_layer_input: PerLayerInputWeights | None = None
    output_scale: Vector | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescription:
    """A mixer, then a feed-forward part, each added to what went into it. One may be absent.

    Attributes:
        per_layer_input: a third part, if embeddings come per layer.
        has_output_scale: whether hidden states are multiplied by a number of the layer's own at
            its end.
    """

    mixer: MixerDescription | None
    feed_forward: FeedForwardDescription | None
    norms: NormPlacement = "before"
    per_layer_input: PerLayerInputDescription | None = None
    has_output_scale: bool = False

    @property
    def parts(
        self,
    ) -> tuple[MixerDescription | FeedForwardDescription | PerLayerInputDescription, ...]:
        """Those that there are."""
        parts = (self.mixer, self.feed_forward, self.per_layer_input)
        return tuple(part for part in parts if part is not None)

    def cache_of(self, index: int) -> int:
        """The layer whose cache it uses, standing at index."""
        shared = None if self.mixer is None else self.mixer.cache_of
        return index if shared is None else shared

    def weights(self, place: Place) -> LayerWeights:
        """Of the layer in its place."""
        mixer, feed_forward, per_layer = self.mixer, self.feed_forward, self.per_layer_input
        has_before, has_after = self.norms != "after", self.norms in ("around", "after")
        before_feed_forward: str | None = "pre_feedforward" if has_after else "post_attention"
        if isinstance(feed_forward, ParallelDescription):
            before_feed_forward = None

        def norms(before: str | None, after: str) -> PartNorms:
            if self.norms == "single":
                return PartNorms(before=place.norm("norm"), after=None)
            return PartNorms(
                before=place.norm(f"{before}_layernorm") if before and has_before else None,
                after=place.norm(f"{after}_layernorm") if has_after else None,
            )

        return LayerWeights(
            mixer_norms=None if mixer is None else norms("input", "post_attention"),
            mixer=None if mixer is None else mixer.weights(place),
            feed_forward_norms=(
                None if feed_forward is None else norms(before_feed_forward, "post_feedforward")
            ),
            feed_forward=None if feed_forward is None else feed_forward.weights(place),
            per_layer_norms=(
                None
                if per_layer is None
                else PartNorms(None, place.norm("post_per_layer_input_norm"))
            ),
            per_layer_input=None if per_layer is None else per_layer.weights(place),
            output_scale=(
                Vector(f"{place.prefix}layer_scalar.weight", 1) if self.has_output_scale else None
            ),
        )

    def unread_names(self, place: Place) -> tuple[str, ...]:
        """Tensors that some files hold although the layer has no use for them."""
        mixer = self.mixer
        return mixer.unread_names(place) if isinstance(mixer, AttentionDescription) else ()


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All weights of a model."""

    embedding: Matrix
    layers: tuple[LayerWeights, ...]
    final_norm: Vector
    head: Matrix | None
    """None: the embedding."""
    per_layer: PerLayerEmbeddingWeights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """One decoder, described by its layers, not by its family.

    Attributes:
        architecture: family name such as "llama", "qwen3", "gemma2"; for messages and templates.
        norm_offset: added to every RMSNorm weight (1.0 in the Gemma family's own files).
        final_norm_offset: to that of the last one, where it differs.
        post_norm_eps: of norms after parts, where it differs.
        embedding_scale: token embeddings are multiplied by it.
        embedding_norm: each is normalised, without weights, before it goes anywhere.
        residual_multiplier: what each part of a layer gives is multiplied by it (Granite).
        logit_divisor: logits are divided by it (Granite).
        logit_softcap: logits x become cap * tanh(x / cap).
        eos_token_ids: tokens that end an output.
        dtype: dtype of the checkpoint's own unquantized weights.
        per_layer: embeddings that come per layer.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    """Most that the rotary embedding is made for."""
    norm_eps: float
    layers: tuple[LayerDescription, ...]
    norm_offset: float = 0.0
    final_norm_offset: float | None = None
    post_norm_eps: float | None = None
    embedding_norm: bool = False
    tied_embeddings: bool = False
    embedding_scale: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0
    logit_softcap: float | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"
    usual_positions: int | None = None
    """What the file calls its window, where the rotary embedding is stretched further."""
    per_layer: PerLayerEmbeddingDescription | None = None

    @property
    def num_layers(self) -> int:
        """How many there are."""
        return len(self.layers)

    @property
    def attentions(self) -> tuple[AttentionDescription, ...]:
        """Of the layers that have attention, in order."""
        mixers = (layer.mixer for layer in self.layers)
        return tuple(mixer for mixer in mixers if isinstance(mixer, AttentionDescription))

    @property
    def default_window(self) -> int:
        """Window to serve when nobody asks for one, in tokens.

        LongRoPE has two sets of frequencies; the short one, for the original window, is the more
        accurate, so the longer window must be asked for.
        """
        ropes = [attention.rope for attention in self.attentions]
        originals = [r.original_max_positions for r in ropes if r.scaling == "longrope"]
        return min([self.usual_positions or self.max_positions, *originals])

    @property
    def caches(self) -> tuple[CacheNeed | None, ...]:
        """What each layer keeps; None for one that keeps nothing."""
        return tuple(None if x.mixer is None else x.mixer.cache for x in self.layers)

    def cache_needs(self, dtype: str) -> tuple[LayerNeed | None, ...]:
        """The same in bytes, in a cache of dtype."""
        return tuple(
            None
            if need is None
            else LayerNeed(need.kind, need.bytes_per_token(dtype), need.window, need.state_parts)
            for need in self.caches
        )

    @property
    def cache_owners(self) -> tuple[int, ...]:
        """Whose cache each layer uses: its own index, or that of an earlier layer."""
        return tuple(layer.cache_of(index) for index, layer in enumerate(self.layers))

    @property
    def last_keeper(self) -> int:
        """The last layer whose mixer keeps anything. Of a token whose last hidden state nobody
        reads, nothing is computed after what that layer keeps of it."""
        keepers = [
            index
            for index, layer in enumerate(self.layers)
            if layer.mixer is not None and layer.mixer.cache_of is None
        ]
        return keepers[-1]

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that the KV cache keeps per token, over all layers."""
        return sum(cache.elements_per_token for cache in self.caches if cache is not None)

    @property
    def state_bytes(self) -> int:
        """Bytes of the states that a sequence has in all layers."""
        return sum(sum(cache.state_parts) for cache in self.caches if cache is not None)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of them in a cache of dtype; int8 has a float32 scale per head of each vector."""
        return sum(cache.bytes_per_token(dtype) for cache in self.caches if cache is not None)

    def weights(self) -> ModelWeights:
        """Names, shapes and roles of all weights."""
        rows, inputs = (self.vocab_size,), self.hidden_size
        embedding = Matrix(name="model.embed_tokens", rows=rows, inputs=inputs, role="embedding")
        head = Matrix(name="lm_head", rows=rows, inputs=inputs, role="head")
        final_norm = self._place("model.").norm("norm")
        if self.final_norm_offset is not None:
            final_norm = replace(final_norm, offset=self.final_norm_offset)
        return ModelWeights(
            embedding=embedding,
            layers=tuple(
                layer.weights(self._place(f"model.layers.{index}."))
                for index, layer in enumerate(self.layers)
            ),
            final_norm=final_norm,
            head=None if self.tied_embeddings else head,
            per_layer=(
                None
                if self.per_layer is None
                else self.per_layer.weights(self._place("model."), self.num_layers)
            ),
        )

    def unread_names(self) -> frozenset[str]:
        """Tensors that some files hold although the model has no use for them."""
        layers = enumerate(self.layers)
        return frozenset(
            name
            for index, layer in layers
            for name in layer.unread_names(self._place(f"model.layers.{index}."))
        )

    def _place(self, prefix: str) -> Place:
        return Place(prefix, self.hidden_size, self.norm_offset)


def dense_layers(
    windows: Sequence[int | None],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    intermediate_size: int,
    rope: RopeDescription,
    local_rope: RopeDescription | None = None,
    query_scale: float | None = None,
    activation: Activation = "silu",
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    norms_span_heads: bool = False,
    query_growth: QueryGrowth | None = None,
    sinks: bool = False,
    attention_softcap: float | None = None,
    norms: NormPlacement = "before",
) -> tuple[LayerDescription, ...]:
    """Layers of attention and a gated MLP that differ in their windows alone, one for each of them.

    local_rope: rotary embedding of the layers with a window, where it differs (Gemma 3).
    query_scale: head_dim ** -0.5 if not given.
    """

    def layer(window: int | None) -> LayerDescription:
        is_local = window is not None and local_rope is not None
        return LayerDescription(
            mixer=AttentionDescription(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                scale=head_dim**-0.5 if query_scale is None else query_scale,
                rope=local_rope if is_local and local_rope is not None else rope,
                window=window,
                qkv_bias=qkv_bias,
                output_bias=output_bias,
                qk_norm=qk_norm,
                norms_span_heads=norms_span_heads,
                query_growth=query_growth,
                sinks=sinks,
                softcap=attention_softcap,
            ),
            feed_forward=GatedMLPDescription(
                intermediate_size=intermediate_size, activation=activation, bias=mlp_bias
            ),
            norms=norms,
        )

    return tuple(map(layer, windows))


def with_experts(
    description: ModelDescription, experts: Sequence[FeedForwardDescription | None]
) -> ModelDescription:
    """The same with other feed-forward parts, one for each layer; None leaves a layer its own."""
    pairs = zip(description.layers, experts, strict=True)
    layers = (x if other is None else replace(x, feed_forward=other) for x, other in pairs)
    return replace(description, layers=tuple(layers))
