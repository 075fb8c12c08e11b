"""Attention by the native library, and its plan."""

import weakref

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
from loire.kernels.native import calls
from loire.kernels.native.context import NativeContext, address
from loire.kernels.native.dtypes import type_number
from loire.kernels.native.workspace import huge_pages
from loire.kernels.reference_attention import ReferenceAttention

_EVERYTHING = 2**62
"""A window that no context fills."""


class NativePlan:
    """The rows of a step, checked against their block tables."""

    def __init__(self, context: NativeContext, batch: FlatBatch, block_size: int) -> None:
        self._batch = batch  # its tensors are read later
        self.block_size = block_size
        self.num_tokens = sum(batch.host_query_lens)
        rows, table_size = batch.block_tables.shape
        call = calls.PlanCall(
            query_starts=batch.query_starts.data_ptr(),
            context_lens=batch.context_lens.data_ptr(),
            block_tables=batch.block_tables.data_ptr(),
            rows=rows,
            table_size=table_size,
            block_size=block_size,
        )
        handle = context.library.plan(context.handle, call)
        if handle is None:
            raise context.error()
        self.handle: int = handle
        weakref.finalize(self, context.library.free_plan, handle)


class NativeAttention(ReferenceAttention):
    """See kernels.interface.AttentionKernels. The cache lies as the reference has it."""

    def __init__(self, context: NativeContext) -> None:
        self._context = context
        self._rotary = context.library.rotary
        self._latents = context.library.latents
        self._attend = context.library.attend

    def new_pages(self, count: int, page_bytes: int, device: torch.device) -> Tensor:
        """In huge pages of the system where it has such: neighbouring blocks of a layer lie a
        whole page of the pool apart, too far for what a processor remembers of small ones."""
        num_bytes = count * page_bytes
        return torch.from_numpy(huge_pages(num_bytes)[:num_bytes]).view(count, page_bytes)

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
        qkv = self._context.results.dense(qkv)
        tokens, width = qkv.shape
        heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        num_blocks, cached_heads, block_size, cached_dim = cache.keys.shape
        num_positions, half = rotary.cos.shape
        stored_heads = kv_heads if shape.stores else 0
        each = 1 if shape.values_are_keys else 2
        fits = width == (heads + each * stored_heads) * dim
        if not fits or (cached_heads, cached_dim) != (kv_heads, dim):
            raise ValueError(
                f"{heads} + {each} * {stored_heads} heads of {dim} do not fit projections of "
                f"{width} and a cache of {cached_heads} heads of {cached_dim}"
            )
        if not _fits(cache, qkv.dtype) or batch.positions.shape[0] != tokens:
            raise ValueError(f"the cache or batch does not fit {tokens} tokens of {qkv.dtype}")
        block_stride, scale_stride = block_strides(cache)
        queries = self._context.results.new((tokens, heads, dim), qkv.dtype)
        call = calls.RotaryCall(
            qkv=qkv.data_ptr(),
            queries=queries.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            key_scales=address(cache.key_scales),
            value_scales=address(cache.value_scales),
            query_weight=None if norms is None else norms.query_weight.data_ptr(),
            key_weight=None if norms is None else norms.key_weight.data_ptr(),
            cos=rotary.cos.data_ptr(),
            sin=rotary.sin.data_ptr(),
            positions=batch.positions.data_ptr(),
            slots=batch.slots.data_ptr(),
            tokens=tokens,
            heads=heads,
            kv_heads=stored_heads,
            head_dim=dim,
            half=half,
            block_size=block_size,
            block_stride=block_stride,
            scale_stride=scale_stride,
            num_blocks=num_blocks,
            num_positions=num_positions,
            type=type_number(qkv.dtype),
            values_are_keys=shape.values_are_keys,
            norm_values=norms is not None and norms.values,
            eps=0.0 if norms is None else norms.eps,
        )
        self._context.run(self._rotary, call)
        return queries

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
        latents = self._context.results.dense(latents)
        tokens, dim = latents.shape
        num_positions, half = rotary.cos.shape
        num_blocks, cached_heads, block_size, cached_dim = cache.keys.shape
        heads, rest = divmod(turned.shape[1], 2 * half)
        sizes = (weight.numel() + 2 * half, cached_heads, cached_dim, rest)
        if sizes != (dim, 1, dim, 0) or turned.shape[0] != tokens or turned.stride(1) != 1:
            raise ValueError(
                f"latents {tuple(latents.shape)}, queries {tuple(turned.shape)}, {2 * half} "
                f"rotated dimensions and a cache of {cached_dim} do not fit each other"
            )
        alike = latents.dtype is turned.dtype and _fits(cache, latents.dtype)
        if not alike or batch.positions.shape[0] != tokens:
            raise ValueError(f"the cache or batch does not fit {tokens} tokens of {latents.dtype}")
        block_stride, scale_stride = block_strides(cache)
        queries = self._context.results.new((tokens, heads, dim), latents.dtype)
        call = calls.LatentsCall(
            latents=latents.data_ptr(),
            turned=turned.data_ptr(),
            queries=queries.data_ptr(),
            kept=cache.keys.data_ptr(),
            scales=address(cache.key_scales),
            weight=weight.data_ptr(),
            cos=rotary.cos.data_ptr(),
            sin=rotary.sin.data_ptr(),
            positions=batch.positions.data_ptr(),
            slots=batch.slots.data_ptr(),
            tokens=tokens,
            heads=heads,
            rope_dim=2 * half,
            rank=dim - 2 * half,
            turned_stride=turned.stride(0),
            block_size=block_size,
            block_stride=block_stride,
            scale_stride=scale_stride,
            num_blocks=num_blocks,
            num_positions=num_positions,
            type=type_number(latents.dtype),
            eps=eps,
        )
        self._context.run(self._latents, call)
        return queries

    def plan(self, batch: FlatBatch, block_size: int) -> AttentionPlan:
        """Check the batch; how it is cut into pieces is settled by the first layer."""
        return NativePlan(self._context, batch, block_size)

    def attend(
        self, queries: Tensor, cache: LayerCache, plan: AttentionPlan, shape: AttentionShape
    ) -> Tensor:
        """Attention of queries [T, H, D] over the paged cache; [T, H * D]."""
        assert isinstance(plan, NativePlan)
        queries = self._context.results.dense(queries)
        tokens, heads, dim = queries.shape
        num_blocks, kv_heads, block_size, _ = cache.keys.shape
        if tokens != plan.num_tokens or block_size != plan.block_size:
            raise ValueError(
                f"the plan is for {plan.num_tokens} tokens and blocks of {plan.block_size}, "
                f"but there are {tokens} and {block_size}"
            )
        if dim % 2 or heads % kv_heads or not _fits(cache, queries.dtype):
            raise ValueError(
                f"{heads} query heads of {dim} ({queries.dtype}) over {kv_heads} key heads "
                f"({cache.keys.dtype}) are not supported"
            )
        block_stride, scale_stride = block_strides(cache)
        out = self._context.results.new((tokens, heads * dim), queries.dtype)
        call = calls.AttendCall(
            plan=plan.handle,
            queries=queries.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            key_scales=address(cache.key_scales),
            value_scales=address(cache.value_scales),
            sinks=address(shape.sinks),
            out=out.data_ptr(),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            block_stride=block_stride,
            scale_stride=scale_stride,
            num_blocks=num_blocks,
            window=_EVERYTHING if shape.window is None else shape.window,
            type=type_number(queries.dtype),
            scale=shape.scale,
            softcap=0.0 if shape.softcap is None else shape.softcap,
        )
        self._context.run(self._attend, call)
        return out


def _fits(cache: LayerCache, dtype: torch.dtype) -> bool:
    """Whether the cache holds keys and values of a model in dtype, as they are or as codes."""
    codes = cache.key_scales is not None and cache.value_scales is not None
    return cache.keys.dtype is cache.values.dtype is (torch.int8 if codes else dtype)


def block_strides(cache: LayerCache) -> tuple[int, int]:
    """How far apart blocks are, in elements: those of keys and values, and those of scales (or 0).

    Raises ValueError if keys and values differ in it, or have gaps within a block.
    """
    strides = cache.keys.stride()
    _, _, size, dim = cache.keys.shape
    if strides != cache.values.stride() or strides[1:] != (size * dim, dim, 1):
        raise ValueError(
            f"blocks of keys and values must be equally far apart and without gaps, but their "
            f"strides are {strides} and {cache.values.stride()}"
        )
    if cache.key_scales is None or cache.value_scales is None:
        return strides[0], 0
    scale_strides = cache.key_scales.stride()
    if scale_strides != cache.value_scales.stride() or scale_strides[1:] != (size, 1):
        raise ValueError(
            f"blocks of scales must be equally far apart and without gaps, but their strides are "
            f"{scale_strides} and {cache.value_scales.stride()}"
        )
    return strides[0], scale_strides[0]
