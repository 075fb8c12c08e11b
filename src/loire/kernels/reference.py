"""The operations in plain torch, on any device: their definition. Others must agree with it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loire.base.config import Quantization
from loire.checkpoint.feed_forward import Activation
from loire.checkpoint.formats import WeightFormat
from loire.kernels.block_formats import StoredTensor
from loire.kernels.interface import (
    AttentionPlan,
    AttentionShape,
    ComputeStep,
    FlatBatch,
    HeadNorms,
    LayerCache,
    Linear,
    RotaryTable,
    SamplingKnobs,
    Weight,
    parts_of,
)
from loire.kernels.quantization import (
    ReferenceQuantizedLinear,
    ReferenceStoredLinear,
    quantize_vectors,
)
from loire.kernels.sampling import draw


class ReferenceLinear:
    """A weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of it."""
        return self.weight.numel() * self.weight.element_size()

    def __call__(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        result = F.linear(x, self.weight, self.bias)
        return result.float() if wide else result


class GatedLinear:
    """A product, and what becomes of its two halves."""

    def __init__(self, both: Linear, activation: Activation) -> None:
        self._both = both
        self._activation = activation
        self.in_features = both.in_features
        self.out_features = both.out_features // 2

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of it."""
        return self._both.weight_bytes

    def __call__(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        if wide:
            raise ValueError("gated results are not wide")
        gate, up = self._both(x).chunk(2, dim=-1)
        if self._activation == "silu":
            return F.silu(gate) * up
        approximate = "tanh" if self._activation == "gelu_tanh" else "none"
        return F.gelu(gate, approximate=approximate) * up


class StackedLinear:
    """Products of the same inputs, their results side by side."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = parts
        self.in_features = parts[0].in_features
        self.out_features = sum(part.out_features for part in parts)

    @property
    def weight_bytes(self) -> int:
        """Bytes that one multiplication reads of them."""
        return sum(part.weight_bytes for part in self._parts)

    def __call__(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """[T, in] to [T, out]."""
        return torch.cat([part(x, wide=wide) for part in self._parts], dim=-1)


def merged(parts: Sequence[Weight]) -> list[Weight]:
    """Neighbours that are stored alike put together, so that few products are left."""
    found: list[Weight] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Tensor) and isinstance(last, Tensor):
            found[-1] = torch.cat([last, part])
        elif (
            isinstance(part, StoredTensor)
            and isinstance(last, StoredTensor)
            and part.format is last.format
        ):
            found[-1] = StoredTensor(part.format, torch.cat([last.blocks, part.blocks]))
        else:
            found.append(part)
    return found


def gated(linear: Linear, gate: Activation | None) -> Linear:
    """linear, or with a gate what Backend.linear() gives."""
    return linear if gate is None else GatedLinear(linear, gate)


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The batch itself, and how many tokens a block has."""

    batch: FlatBatch
    block_size: int


class ReferenceBackend:
    """See kernels.interface.Backend."""

    name = "reference"
    batch_invariant_dtypes: frozenset[torch.dtype] = frozenset()
    copies_weights = False
    torch_threads: int | None = None

    def keeps(self, formats: Collection[WeightFormat], dtype: torch.dtype) -> bool:
        """None: linear() takes all of them, but takes them apart each time, which is slow."""
        return False

    def linear(
        self,
        weight: Weight | Sequence[Weight],
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        quantization: Quantization | None = None,
        gate: Activation | None = None,
    ) -> Linear:
        """Keep weight [out, in] as it is, as codes, or in its blocks."""
        parts = merged(parts_of(weight))
        biases: Sequence[Tensor | None] = [None] * len(parts)
        if bias is not None:
            biases = bias.split([part.shape[0] for part in parts])
        pairs = zip(parts, biases, strict=True)
        linears = [self._one_linear(part, own, quantization) for part, own in pairs]
        return gated(linears[0] if len(linears) == 1 else StackedLinear(linears), gate)

    def _one_linear(
        self, weight: Weight, bias: Tensor | None, quantization: Quantization | None
    ) -> Linear:
        if isinstance(weight, StoredTensor):
            return ReferenceStoredLinear(weight, bias)
        if quantization is not None:
            return ReferenceQuantizedLinear(weight, bias, quantization)
        return self.dense_linear(weight, bias)

    def dense_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Keep weight [out, in] as it is."""
        return ReferenceLinear(weight, bias)

    def embed(
        self, token_ids: Tensor, table: Tensor, scale: float, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(rows), rows) of a table [V, E]."""
        residual = table[token_ids].float() * scale
        return self.rms_norm(residual, weight, eps).to(table.dtype), residual

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, E] (or [..., E]) normalised in float32, times weight."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        return (wide * scale * weight).to(x.dtype)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(x + residual), x + residual)."""
        residual = x + residual
        return self.rms_norm(residual, weight, eps).to(x.dtype), residual

    def largest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Two passes of torch's own."""
        low, high = torch.aminmax(logits, dim=1)
        return logits.argmax(dim=1), torch.isfinite(low) & torch.isfinite(high)

    def draw(self, logits: Tensor, knobs: SamplingKnobs) -> Tensor:
        """Sorts as many of the likeliest as a row's knobs make likely to be enough."""
        return draw(logits, knobs)

    def rotate_and_store(
        self,
        qkv: Tensor,
        shape: AttentionShape,
        norms: HeadNorms | None,
        rotary: RotaryTable,
        batch: FlatBatch,
        cache: LayerCache,
    ) -> Tensor:
        """Queries [T, H, D], normed and rotated; keys and values are in the cache then."""
        num_tokens, dim = qkv.shape[0], shape.head_dim
        heads = qkv.view(num_tokens, -1, dim)
        queries, kept = heads[:, : shape.num_heads], heads[:, shape.num_heads :]
        if norms is not None:
            queries = self.rms_norm(queries, norms.query_weight, norms.eps)
        cos = rotary.cos[batch.positions][:, None]
        sin = rotary.sin[batch.positions][:, None]
        if shape.stores:
            keys, values = kept.chunk(2, dim=1)
            if norms is not None:
                keys = self.rms_norm(keys, norms.key_weight, norms.eps)
            store(cache.keys, cache.key_scales, batch.slots, rotate(keys, cos, sin))
            store(cache.values, cache.value_scales, batch.slots, values)
        return rotate(queries, cos, sin)

    def plan_attention(self, batch: FlatBatch, block_size: int) -> AttentionPlan:
        """Nothing to work out."""
        return ReferencePlan(batch, block_size)

    def capture(self, compute: ComputeStep) -> ComputeStep:
        """As it is."""
        return compute

    def attend(
        self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, shape: AttentionShape
    ) -> Tensor:
        """Row by row: gather the context exactly, mask, softmax in float32."""
        assert isinstance(plan, ReferencePlan)
        batch = plan.batch
        outputs = []
        first = 0
        for row, (query_len, context_len) in enumerate(
            zip(batch.host_query_lens, batch.host_context_lens, strict=True)
        ):
            keys, values = gather_context(cache, batch.block_tables[row], context_len)
            row_queries = queries[first : first + query_len]
            outputs.append(attend_row(row_queries, keys, values, shape))
            first += query_len
        return torch.cat(outputs).flatten(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + rotary_dim / 2) of x [T, heads, D] in float32; the rest stays.

    cos, sin: float32 [T, 1, rotary_dim / 2].
    """
    half = cos.shape[-1]
    wide = x.float()
    first, second = wide[..., :half], wide[..., half : 2 * half]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if 2 * half < x.shape[-1]:
        parts.append(wide[..., 2 * half :])
    return torch.cat(parts, dim=-1).to(x.dtype)


def store(blocks: Tensor, scales: Tensor | None, slots: Tensor, new: Tensor) -> None:
    """Write new [T, K, D] at slots (block * S + offset) of blocks [N, K, S, D].

    scales: [N, K, S], of blocks that hold codes.
    """
    size = blocks.shape[2]
    if scales is not None:
        new, new_scales = quantize_vectors(new)
        scales[slots // size, :, slots % size] = new_scales
    blocks[slots // size, :, slots % size] = new


def gather_context(
    cache: LayerCache, block_table: Tensor, context_len: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [K, context, D] of one row, nothing past its context; codes as float32."""
    num_blocks = -(-context_len // cache.keys.shape[2])
    used = block_table[:num_blocks].long()

    def gather(blocks: Tensor, scales: Tensor | None) -> Tensor:
        found = blocks[used] if scales is None else blocks[used] * scales[used][..., None]
        return found.transpose(0, 1).flatten(1, 2)[:, :context_len]

    return gather(cache.keys, cache.key_scales), gather(cache.values, cache.value_scales)


def attend_row(queries: Tensor, keys: Tensor, values: Tensor, shape: AttentionShape) -> Tensor:
    """Queries [Q, H, D], the last Q positions of the context, over keys [K, C, D]; [Q, H, D]."""
    query_len, context_len = queries.shape[0], keys.shape[1]
    group = shape.num_heads // shape.num_kv_heads
    grouped = queries.float().transpose(0, 1).unflatten(0, (shape.num_kv_heads, group))
    scores = grouped @ keys.float()[:, None].transpose(-1, -2) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    mask = visible(query_len, context_len, shape.window, queries.device)
    weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
    output = weights @ values.float()[:, None]
    return output.flatten(0, 1).transpose(0, 1).to(queries.dtype)


def visible(query_len: int, context_len: int, window: int | None, device: torch.device) -> Tensor:
    """bool [Q, C]: which keys each of the last Q positions sees."""
    query = torch.arange(context_len - query_len, context_len, device=device)[:, None]
    key = torch.arange(context_len, device=device)[None]
    mask = key <= query
    return mask if window is None else mask & (key > query - window)
