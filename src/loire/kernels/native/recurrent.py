"""Mixers with a state by the native library: a row's result is the same bits in whatever pieces it
is computed."""

import torch
from torch import Tensor

from loire.kernels.interface import (
    AttentionPlan,
    DeltaNetShape,
    DeltaNetWeights,
    FlatBatch,
    Mamba2Shape,
    Mamba2Weights,
    StateCache,
)
from loire.kernels.native import calls
from loire.kernels.native.attention import NativePlan
from loire.kernels.native.context import NativeContext, address
from loire.kernels.native.dtypes import type_number


class NativeRecurrent:
    """See kernels.interface.RecurrentKernels."""

    is_replayable = True

    def __init__(self, context: NativeContext) -> None:
        self._context = context
        self._delta_net = context.library.delta_net
        self._mamba2 = context.library.mamba2
        self._short_convolution = context.library.short_convolution
        self._places: dict[int, tuple[StateCache, Tensor]] = {}
        """By the cache's identity: int64 [arrays, 2], for the library. Holds the cache as well, so
        that no other gets its identity."""

    def plan(self, batch: FlatBatch) -> AttentionPlan | None:
        """The rows and the pages of their slots."""
        return NativePlan(self._context, batch, 0)

    def gated_delta_net(
        self,
        qkv_gate: Tensor,
        beta_alpha: Tensor,
        weights: DeltaNetWeights,
        shape: DeltaNetShape,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: StateCache,
    ) -> Tensor:
        """[T, value_size]."""
        results = self._context.results
        qkv_gate, beta_alpha = results.dense(qkv_gate), results.dense(beta_alpha)
        tokens, heads, width = len(qkv_gate), shape.num_value_heads, len(weights.filters)
        state_shapes = [places.shape for places in cache.arrays]
        fits = state_shapes == [(width - 1, shape.channels), (shape.key_dim, shape.value_dim)]
        given = (qkv_gate.shape[1], *beta_alpha.shape)
        if not fits or given != (shape.channels + shape.value_size, tokens, 2 * heads):
            raise ValueError(
                f"inputs of {tuple(qkv_gate.shape)} and {tuple(beta_alpha.shape)}, filters of "
                f"width {width} and states of {state_shapes} do not fit {shape}"
            )
        new = results.new
        mixed = new((tokens, shape.channels), torch.float32)
        gates = new((tokens, 2 * heads + shape.num_key_heads), torch.float32)
        out = new((tokens, shape.value_size), qkv_gate.dtype)
        call = calls.DeltaNetCall(
            plan=_checked(plan, tokens).handle,
            qkv_gate=qkv_gate.data_ptr(),
            beta_alpha=beta_alpha.data_ptr(),
            filters=weights.filters.data_ptr(),
            rate=weights.rate.data_ptr(),
            decay_bias=weights.decay_bias.data_ptr(),
            norm=weights.norm.data_ptr(),
            places=self._places_of(cache),
            pages=cache.pages.data_ptr(),
            mixed=mixed.data_ptr(),
            gates=gates.data_ptr(),
            out=out.data_ptr(),
            num_pages=cache.pages.shape[0],
            page_bytes=cache.pages.stride(0),
            tokens=tokens,
            width=width,
            key_heads=shape.num_key_heads,
            value_heads=heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
            type=type_number(qkv_gate.dtype),
            heads_in_turn=shape.heads_in_turn,
            eps=shape.eps,
        )
        self._context.run(self._delta_net, call)
        return out

    def mamba2(
        self,
        projected: Tensor,
        weights: Mamba2Weights,
        shape: Mamba2Shape,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: StateCache,
    ) -> Tensor:
        """[T, size]."""
        results = self._context.results
        projected = results.dense(projected)
        (tokens, given), heads, width = projected.shape, shape.num_heads, len(weights.filters)
        state_shapes = [places.shape for places in cache.arrays]
        fits = state_shapes == [(width - 1, shape.channels), (shape.state_dim, shape.head_dim)]
        if not fits or given != shape.size + shape.channels + heads:
            raise ValueError(
                f"inputs of {tuple(projected.shape)}, filters of width {width} and states of "
                f"{state_shapes} do not fit {shape}"
            )
        mixed = results.new((tokens, shape.channels), torch.float32)
        steps = results.new((tokens, 2 * heads), torch.float32)
        scanned = results.new((tokens, shape.size), torch.float32)
        out = results.new((tokens, shape.size), projected.dtype)
        call = calls.Mamba2Call(
            plan=_checked(plan, tokens).handle,
            projected=projected.data_ptr(),
            filters=weights.filters.data_ptr(),
            filter_bias=address(weights.filter_bias),
            rate=weights.rate.data_ptr(),
            step_bias=weights.step_bias.data_ptr(),
            skip=weights.skip.data_ptr(),
            norm=weights.norm.data_ptr(),
            places=self._places_of(cache),
            pages=cache.pages.data_ptr(),
            mixed=mixed.data_ptr(),
            steps=steps.data_ptr(),
            scanned=scanned.data_ptr(),
            out=out.data_ptr(),
            num_pages=cache.pages.shape[0],
            page_bytes=cache.pages.stride(0),
            tokens=tokens,
            width=width,
            heads=heads,
            groups=shape.num_groups,
            head_dim=shape.head_dim,
            state_dim=shape.state_dim,
            type=type_number(projected.dtype),
            least_step=shape.least_step,
            most_step=shape.most_step,
            eps=shape.eps,
        )
        self._context.run(self._mamba2, call)
        return out

    def short_convolution(
        self,
        gated: Tensor,
        filters: Tensor,
        bias: Tensor | None,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: StateCache,
    ) -> Tensor:
        """[T, E]."""
        gated = self._context.results.dense(gated)
        tokens, (width, size) = len(gated), filters.shape
        if gated.shape[1] != 3 * size or cache.arrays[0].shape != (width - 1, size):
            raise ValueError(
                f"inputs of {tuple(gated.shape)} and a state of {cache.arrays[0].shape} do not fit "
                f"filters of {tuple(filters.shape)}"
            )
        out = self._context.results.new((tokens, size), gated.dtype)
        call = calls.ShortConvolutionCall(
            plan=_checked(plan, tokens).handle,
            gated=gated.data_ptr(),
            filters=filters.data_ptr(),
            bias=address(bias),
            places=self._places_of(cache),
            pages=cache.pages.data_ptr(),
            out=out.data_ptr(),
            num_pages=cache.pages.shape[0],
            page_bytes=cache.pages.stride(0),
            tokens=tokens,
            width=width,
            size=size,
            type=type_number(gated.dtype),
        )
        self._context.run(self._short_convolution, call)
        return out

    def _places_of(self, cache: StateCache) -> int:
        known = self._places.get(id(cache))
        if known is None:
            places = [place for arrays in cache.arrays for place in arrays.places]
            known = self._places[id(cache)] = cache, torch.tensor(places, dtype=torch.int64)
        return known[1].data_ptr()


def _checked(plan: AttentionPlan | None, tokens: int) -> NativePlan:
    """The plan, which is one of so many tokens. Raises ValueError."""
    assert isinstance(plan, NativePlan)
    if plan.num_tokens != tokens or plan.block_size:
        raise ValueError(
            f"the plan is for {plan.num_tokens} tokens and blocks of {plan.block_size}, but there "
            f"are {tokens}, with states"
        )
    return plan
