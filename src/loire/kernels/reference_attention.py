"""Attention over the paged cache in plain torch, on any device: its definition."""

from dataclasses import dataclass

import torch
from torch import Tensor

from loire.kernels.interface import (
    AttentionPlan,
    AttentionShape,
    FlatBatch,
    HeadNorms,
    LayerCache,
    RotaryTable,
)
from loire.kernels.quantization import quantize_vectors
from loire.kernels.reference_pointwise import rms_norm


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The batch itself, and how many tokens a block has."""

    batch: FlatBatch
    block_size: int


class ReferenceAttention:
    """See kernels.interface.AttentionKernels."""

    def new_pages(self, count: int, page_bytes: int, device: torch.device) -> Tensor:
        """uint8 [count, page_bytes]."""
        return torch.empty((count, page_bytes), dtype=torch.uint8, device=device)

    def layer_bytes(
        self,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        *,
        is_latent: bool = False,
    ) -> int:
        """Keys, then values, then the scales of codes, to whole cache lines."""
        vectors = num_kv_heads * block_size * (1 if is_latent else 2)
        scale_bytes = 4 if dtype is torch.int8 else 0
        return -(-vectors * (head_dim * dtype.itemsize + scale_bytes) // 64) * 64

    def layer_cache(
        self,
        pages: Tensor,
        offset: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        *,
        is_latent: bool = False,
    ) -> LayerCache:
        """Views of pages (uint8 [N, page bytes])."""
        num_bytes = self.layer_bytes(num_kv_heads, block_size, head_dim, dtype, is_latent=is_latent)
        if offset % 64 or offset + num_bytes > pages.shape[1]:
            raise ValueError(
                f"{num_bytes} bytes of a layer at {offset} do not fit a page of {pages.shape[1]}"
            )
        shape = (num_kv_heads, block_size, head_dim)
        part_bytes = num_kv_heads * block_size * head_dim * dtype.itemsize

        def view(start: int, num_bytes: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
            part: Tensor = pages[:, start : start + num_bytes].view(dtype).unflatten(1, shape)
            return part

        keys = view(offset, part_bytes, dtype, shape)
        end = offset + part_bytes
        values = keys
        if not is_latent:
            values = view(end, part_bytes, dtype, shape)
            end += part_bytes
        if dtype is not torch.int8:
            return LayerCache(keys, values)
        scale_bytes = 4 * num_kv_heads * block_size
        key_scales = view(end, scale_bytes, torch.float32, shape[:2])
        value_scales = key_scales
        if not is_latent:
            value_scales = view(end + scale_bytes, scale_bytes, torch.float32, shape[:2])
        return LayerCache(keys, values, key_scales, value_scales)

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
            queries = rms_norm(queries, norms.query_weight, norms.eps)
        cos = rotary.cos[batch.positions][:, None]
        sin = rotary.sin[batch.positions][:, None]
        if shape.stores:
            keys, values = (kept, kept) if shape.values_are_keys else kept.chunk(2, dim=1)
            if norms is not None:
                keys = rms_norm(keys, norms.key_weight, norms.eps)
                if norms.values:
                    values = rms_norm(values, torch.ones_like(norms.key_weight), norms.eps)
            store(cache.keys, cache.key_scales, batch.slots, rotate(keys, cos, sin))
            store(cache.values, cache.value_scales, batch.slots, values)
        return rotate(queries, cos, sin)

    def store_latents(
        self,
        latents: Tensor,
        turned: Tensor,
        weight: Tensor,
        eps: float,
        rotary: RotaryTable,
        batch: FlatBatch,
        cache: LayerCache,
    ) -> Tensor:
        """Queries [T, H, D], their rotated dimensions set; what is kept is in the cache then."""
        cos = rotary.cos[batch.positions][:, None]
        sin = rotary.sin[batch.positions][:, None]
        rope_dim = 2 * cos.shape[-1]
        latent, key = latents.split([weight.numel(), rope_dim], dim=1)
        normed = rms_norm(latent, weight, eps)[:, None]
        kept = torch.cat([rotate(key[:, None], cos, sin), normed], dim=-1)
        store(cache.keys, cache.key_scales, batch.slots, kept)
        rotated = rotate(turned.unflatten(1, (-1, rope_dim)), cos, sin)
        queries = rotated.new_empty((*rotated.shape[:2], latents.shape[1]))
        queries[..., :rope_dim] = rotated
        return queries

    def plan(self, batch: FlatBatch, block_size: int) -> AttentionPlan:
        """Nothing to work out."""
        return ReferencePlan(batch, block_size)

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
            seen = first_seen(query_len, context_len, shape.window, plan.block_size)
            keys, values = gather_context(cache, batch.block_tables[row], context_len, seen)
            row_queries = queries[first : first + query_len]
            outputs.append(attend_row(row_queries, keys, values, shape, context_len))
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


def first_seen(query_len: int, context_len: int, window: int | None, block_size: int) -> int:
    """Position at which the first block begins that any of the last Q positions sees."""
    if window is None:
        return 0
    return max(context_len - query_len - window + 1, 0) // block_size * block_size


def gather_context(
    cache: LayerCache, block_table: Tensor, context_len: int, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Keys and values [K, context - first, D] of one row from position first on, where a block
    begins, nothing past its context; codes as float32."""
    size = cache.keys.shape[2]
    used = block_table[first // size : -(-context_len // size)].long()

    def gather(blocks: Tensor, scales: Tensor | None) -> Tensor:
        found = blocks[used] if scales is None else blocks[used] * scales[used][..., None]
        return found.transpose(0, 1).flatten(1, 2)[:, : context_len - first]

    keys = gather(cache.keys, cache.key_scales)
    if cache.values is cache.keys:
        return keys, keys
    return keys, gather(cache.values, cache.value_scales)


def attend_row(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    shape: AttentionShape,
    context_len: int | None = None,
) -> Tensor:
    """Queries [Q, H, D], the last Q positions of the context, over keys [K, C, D]; [Q, H, D].

    context_len: of which keys and values are the last; by default they are all.
    """
    query_len, num_keys = queries.shape[0], keys.shape[1]
    context_len = num_keys if context_len is None else context_len
    group = shape.num_heads // shape.num_kv_heads
    grouped = queries.float().transpose(0, 1).unflatten(0, (shape.num_kv_heads, group))
    scores = grouped @ keys.float()[:, None].transpose(-1, -2) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    mask = visible(query_len, context_len, shape.window, queries.device)
    mask = mask[:, context_len - num_keys :]
    weights = softmax_with_sinks(scores.masked_fill(~mask, float("-inf")), shape)
    output = weights @ values.float()[:, None]
    return output.flatten(0, 1).transpose(0, 1).to(queries.dtype)


def softmax_with_sinks(scores: Tensor, shape: AttentionShape) -> Tensor:
    """Of scores (float32 [..., K, H / K, Q, C]) over the keys, beside the head's sink if any."""
    if shape.sinks is None:
        return torch.softmax(scores, dim=-1)
    heads = scores.shape[-4:-2]
    sinks = shape.sinks.view(*heads, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]


def visible(query_len: int, context_len: int, window: int | None, device: torch.device) -> Tensor:
    """bool [Q, C]: which keys each of the last Q positions sees."""
    query = torch.arange(context_len - query_len, context_len, device=device)[:, None]
    key = torch.arange(context_len, device=device)[None]
    mask = key <= query
    return mask if window is None else mask & (key > query - window)
