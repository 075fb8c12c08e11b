"""Mixtures of experts by the native library: source/runtime/experts.h."""

from collections.abc import Sequence
from ctypes import addressof, c_int64, c_void_p

import torch
from torch import Tensor

from loire.checkpoint.feed_forward import Routing, Scores
from loire.kernels.interface import Expert, ExpertChunks, FlatBatch, Linear
from loire.kernels.native.calls import ExpertsCall
from loire.kernels.native.context import NativeContext, adapter_numbers, address
from loire.kernels.native.library import array_of

SCORES: dict[Scores, int] = {"softmax": 0, "softmax_of_chosen": 1, "sigmoid": 2}
"""As in source/kernels/operations.h."""


class NativeExperts:
    """See kernels.interface.Experts. Tokens are sorted by expert, and the products' pieces of all
    experts handed out together."""

    is_replayable = True

    def __init__(
        self,
        context: NativeContext,
        experts: Sequence[Expert | None],
        routing: Routing,
        bias: Tensor | None,
        scales: Tensor | None = None,
        chunks: ExpertChunks | None = None,
    ) -> None:
        """Raises ValueError if they are not as many as the routing says."""
        if len(experts) != routing.num_experts:
            raise ValueError(f"{len(experts)} experts, but {routing.num_experts} to choose from")
        held = [expert for expert in experts if expert is not None]
        self.weight_bytes = sum(x.gate_up.weight_bytes + x.down.weight_bytes for x in held)
        """Bytes of all experts."""
        self._experts = tuple(experts)  # they hold the weights
        self._routing = routing
        self._bias = None if bias is None else bias.float().contiguous()
        self._scales = None if scales is None else scales.float().contiguous()
        self._context = context
        self._run = context.library.experts
        self._gate_ups = array_of(
            c_void_p, [None if x is None else handle_of(x.gate_up) for x in experts]
        )
        self._downs = array_of(
            c_void_p, [None if x is None else handle_of(x.down) for x in experts]
        )
        self._size, self._dtype = held[0].gate_up.in_features, held[0].gate_up.dtype
        self._borders = array_of(c_int64, () if chunks is None else chunks.borders)
        self._num_chunks = 0 if chunks is None else len(chunks.borders) - 1
        self._ranks = None if chunks is None else chunks.ranks

    def __call__(
        self,
        x: Tensor,
        logits: Tensor,
        beside: Tensor | None = None,
        batch: FlatBatch | None = None,
    ) -> Tensor:
        """[T, E] of x [T, E], a router's logits of it, and what is added [T, E]."""
        x, logits = self._context.results.dense(x), self._context.results.dense(logits)
        routing, tokens = self._routing, len(x)
        fits = x.shape[1] == self._size and x.dtype is self._dtype
        if not fits or logits.shape != (tokens, routing.num_experts):
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype} with logits {tuple(logits.shape)}, but there are "
                f"{routing.num_experts} experts for {self._size} {self._dtype}"
            )
        if logits.dtype is not torch.float32:
            raise ValueError(f"logits are float32, not {logits.dtype}")
        if beside is not None:
            beside = self._context.results.dense(beside)
            if beside.shape != x.shape or beside.dtype is not x.dtype:
                raise ValueError(f"what is added to {tuple(x.shape)} is {tuple(beside.shape)}")
        out = self._context.results.new((tokens, self._size), self._dtype)
        call = ExpertsCall(
            gate_ups=addressof(self._gate_ups),
            downs=addressof(self._downs),
            x=x.data_ptr(),
            logits=logits.data_ptr(),
            bias=address(self._bias),
            expert_scales=address(self._scales),
            beside=address(beside),
            adapters=adapter_numbers(batch, tokens),
            out=out.data_ptr(),
            borders=addressof(self._borders),
            ranks=getattr(self._ranks, "handle", None),
            tokens=tokens,
            experts=routing.num_experts,
            top_k=routing.top_k,
            groups=routing.num_groups,
            chosen_groups=routing.chosen_groups,
            chunks=self._num_chunks,
            scores=SCORES[routing.scores],
            renormalise=routing.renormalise,
            scale=routing.scale,
        )
        self._context.run(self._run, call)
        return out


def handle_of(linear: Linear) -> int:
    """Of a weight that the library holds as one."""
    handle = getattr(linear, "handle", None)
    if not isinstance(handle, int):
        raise ValueError(f"an expert's product is a {type(linear).__name__} of several weights")
    return handle
