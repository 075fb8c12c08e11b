"""One layer at a time over calibration text: what goes into its products, and what comes out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.feed_forward import Activation, ParallelDescription
from loire.checkpoint.weights import Matrix, each
from loire.execution.whole_texts import WholeTexts
from loire.kernels.cpu import CpuBackend
from loire.kernels.interface import FlatBatch, Linear, LowRank, PackedAdapter, Weight
from loire.models.adaptable import Adaptable
from loire.models.decoder import Layer, Norms
from loire.models.layer_loader import LayerLoader, RotaryTables, Tensors, WeightReader
from loire.models.loading import build_layer

CPU = torch.device("cpu")


@dataclass(slots=True)
class Moments:
    """Second moments of the inputs of products, by the names of their weights."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """float32 [in, in]: sums of x x^T."""
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, x: Tensor) -> None:
        """Inputs [T, in]."""
        wide = x.float()
        if name not in self.sums:
            self.sums[name] = torch.zeros(wide.shape[1], wide.shape[1])
            self.counts[name] = 0
        self.sums[name].addmm_(wide.T, wide)
        self.counts[name] += len(wide)

    def mean(self, name: str, size: int) -> Tensor:
        """float32 [in, in], of one input of so many numbers; as if inputs were independent and all
        alike where none was seen, as of an expert that no token chose."""
        if not self.counts.get(name):
            return torch.eye(size)
        return self.sums[name] / self.counts[name]


class _Watched:
    """A product that tells what went into it."""

    def __init__(self, inner: Linear, name: str, moments: Moments) -> None:
        self.inner = inner
        self.name = name
        self.moments = moments
        self.in_features = inner.in_features
        self.out_features = inner.out_features

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    @property
    def weight_bytes(self) -> int:
        return self.inner.weight_bytes

    def __call__(self, x: Tensor, batch: FlatBatch | None = None, *, wide: bool = False) -> Tensor:
        self.moments.add(self.name, x)
        return self.inner(x, batch, wide=wide)

    def pack_adapter(self, parts: Sequence[LowRank]) -> PackedAdapter:
        return self.inner.pack_adapter(parts)

    def adapt(self, number: int, adapter: PackedAdapter | None) -> None:
        self.inner.adapt(number, adapter)


class _WatchingLoader(LayerLoader):
    """Makes products that tell what went into them."""

    moments: Moments | None = None

    def linear(
        self, weight: Matrix, gate: Activation | None = None, order: Tensor | None = None
    ) -> Linear:
        made = super().linear(weight, gate, order)
        return made if self.moments is None else _Watched(made, weight.name, self.moments)

    def adapts(self, name: str, weight: Adaptable) -> None:
        """No adapters come here: the reader would keep the products of all layers for them."""


class CalibrationRun:
    """Texts of one length, computed layer by layer in float32."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> None:
        """texts: token ids, all of the same length. Raises UnsupportedModelError for layers that
        need more than the stream of those before them."""
        self.description: ModelDescription = checkpoint.description
        if self.description.embedding_norm:
            raise UnsupportedModelError(
                "its embeddings are normalised, which `loire quantize` is not made for"
            )
        for index, layer in enumerate(self.description.layers):
            _check_kind(index, layer)
        self.weights = self.description.weights()
        self.backend = CpuBackend()
        self.reader = WeightReader(
            checkpoint.tensors,
            dtype=torch.float32,
            device=CPU,
            backend=self.backend,
            quantization="none",
        )
        self._texts = WholeTexts(self.description, self.backend, texts)
        self.token_ids = self._texts.token_ids.view(len(texts), -1)
        """int64 [texts, tokens]."""
        self._rotary = RotaryTables(len(texts[0]), CPU)
        unit = self.description.residual_multiplier
        self._embedding_scale = self.description.embedding_scale / unit
        self._stream_eps = self.description.norm_eps / unit**2

    def layer_tensors(self, index: int) -> Tensors:
        """All of a layer's, in float32, by name. Raises CheckpointError if one is not finite."""
        found = self.reader.read(tuple(each(self.weights.layers[index])))
        for name, tensor in found.items():
            _check_finite(name, tensor)
        return found

    def matrix(self, weight: Matrix) -> Tensor:
        """A weight that is no layer's, float32 [outputs, inputs]. Raises as layer_tensors()."""
        found = self.reader.read([weight])[f"{weight.name}.weight"]
        _check_finite(weight.name, found)
        assert isinstance(found, Tensor)
        return found

    @torch.inference_mode()
    def embed(self, table: Tensor) -> Tensor:
        """The stream before the first layer, float32 [T, E], with a table [V, E]."""
        return table[self.token_ids.flatten()].float() * self._embedding_scale

    @torch.inference_mode()
    def layer(
        self,
        index: int,
        tensors: Mapping[str, Weight],
        streams: Sequence[Tensor],
        moments: Moments | None = None,
    ) -> list[Tensor]:
        """Streams after a layer with these tensors as its weights: float32 [T, E] of what each was
        before it."""
        loader = _WatchingLoader(
            self.reader,
            dict(tensors),
            self.description.norm_eps,
            self._rotary,
        )
        loader.moments = moments
        built = build_layer(
            index, self.description.layers[index], self.weights.layers[index], loader
        )
        return [self._advance(built, index, stream) for stream in streams]

    @torch.inference_mode()
    def logits(self, stream: Tensor, head: Tensor) -> Tensor:
        """float32 [T, V] of the stream after the last layer [T, E], with a head [V, E]."""
        return self.logits_of(self.final_states(stream), head)

    @torch.inference_mode()
    def logits_of(self, states: Tensor, head: Tensor) -> Tensor:
        """float32 [T, V] of what goes into the head [T, E]."""
        logits = states @ head.T / self.description.logit_divisor
        cap = self.description.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.inference_mode()
    def final_states(self, stream: Tensor) -> Tensor:
        """What goes into the head, float32 [T, E]."""
        norm = self.weights.final_norm
        weight = self.reader.read([norm])[norm.name]
        assert isinstance(weight, Tensor)
        return self.backend.pointwise.rms_norm(stream, weight + norm.offset, self._stream_eps)

    def _advance(self, layer: Layer, index: int, stream: Tensor) -> Tensor:
        cache = self._texts.cache(index, torch.float32)
        batch, plan = self._texts.batches[cache.group], self._texts.plans[cache.group]
        if layer.mixer is not None and layer.mixer_norms is not None:
            x = self._normed(stream, layer.mixer_norms)
            remembered = layer.mixer.remember(x, self.backend, batch, plan, cache)
            x = layer.mixer.recall(remembered, self.backend, batch, plan, cache)
            stream = self._added(stream, x, layer.mixer_norms)
        if layer.feed_forward is not None and layer.feed_forward_norms is not None:
            x = self._normed(stream, layer.feed_forward_norms)
            x = layer.feed_forward(x, self._texts.batches[0])
            stream = self._added(stream, x, layer.feed_forward_norms)
        return stream

    def _normed(self, stream: Tensor, norms: Norms) -> Tensor:
        """What a part gets."""
        if norms.before is None:
            return stream
        return self.backend.pointwise.rms_norm(stream, norms.before, self._stream_eps)

    def _added(self, stream: Tensor, x: Tensor, norms: Norms) -> Tensor:
        """The stream with what a part made of it."""
        if norms.after is not None:
            x = self.backend.pointwise.rms_norm(x, norms.after, self.description.norm_eps)
        return (stream + x) * norms.scale


def _check_finite(name: str, tensor: Weight) -> None:
    """Numbers that are none cannot be rounded."""
    if isinstance(tensor, Tensor) and tensor.numel():
        low, high = torch.aminmax(tensor)
        if not math.isfinite(low) or not math.isfinite(high):
            raise CheckpointError(f"tensor {name!r} holds numbers that are not finite")


def _check_kind(index: int, layer: LayerDescription) -> None:
    is_parallel = isinstance(layer.feed_forward, ParallelDescription)
    if layer.per_layer_input is not None or layer.has_output_scale or is_parallel:
        raise UnsupportedModelError(
            f"layer {index} has embeddings of its own, a scale, or parts side by side: `loire "
            f"quantize` is not made for these"
        )
    if layer.cache_of(index) != index:
        raise UnsupportedModelError(
            f"layer {index} reads the keys and values of layer {layer.cache_of(index)}: `loire "
            f"quantize` computes each layer by itself"
        )
