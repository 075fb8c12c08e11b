"""Mixtures of experts by a backend's products, each computed once, for the tokens that chose it:
their definition."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loire.checkpoint.feed_forward import Routing
from loire.kernels.interface import AdapterRows, Expert, ExpertChunks, FlatBatch


def choose_experts(
    logits: Tensor, routing: Routing, bias: Tensor | None, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Experts (int64 [T, top_k], the best first) and their weights (float32 [T, top_k]).

    logits: float32 [T, experts], of the router. bias: float32 [experts], added to scores where they
    are compared. scales: float32 [experts]; each expert's weight is multiplied by its own.
    """
    scores = logits.sigmoid() if routing.scores == "sigmoid" else logits
    # (A softmax keeps the order of the logits.)
    compared = scores if bias is None else scores + bias
    if routing.chosen_groups < routing.num_groups:
        compared = compared.masked_fill(~_in_chosen_groups(compared, routing), float("-inf"))
    chosen = _best(compared, routing.top_k)
    if routing.scores == "softmax":
        scores = torch.softmax(logits, dim=-1)
    weights = scores.gather(-1, chosen)
    if routing.scores == "softmax_of_chosen":
        weights = torch.softmax(weights, dim=-1)
    elif routing.renormalise:
        # (With the softmax the sum is never 0.)
        least = 1e-20 if routing.scores == "sigmoid" else 0.0
        weights = weights / (weights.sum(dim=-1, keepdim=True) + least)
    weights = weights * routing.scale
    return chosen, weights if scales is None else weights * scales[chosen]


def _best(compared: Tensor, count: int) -> Tensor:
    """Indices of the largest, in a stable order, so that equals are chosen alike in any company."""
    return compared.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _in_chosen_groups(compared: Tensor, routing: Routing) -> Tensor:
    """bool [T, experts]: whether an expert lies in a group that its token may choose from."""
    grouped = compared.unflatten(-1, (routing.num_groups, -1))
    best = min(2 if routing.scores == "sigmoid" else 1, grouped.shape[-1])
    worth = grouped.topk(best, dim=-1).values.sum(dim=-1)
    chosen = torch.zeros_like(worth, dtype=torch.bool)
    chosen.scatter_(-1, _best(worth, routing.chosen_groups), True)
    return chosen[..., None].expand_as(grouped).flatten(-2)


def compute_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    experts: Sequence[Expert | None],
    beside: Tensor | None = None,
    chunks: ExpertChunks | None = None,
    batch: FlatBatch | None = None,
) -> Tensor:
    """[T, E]: for each token of x [T, E] the weighted sum of what its experts make of it, in the
    order of the experts, and of beside, in float32, then rounded to x's dtype. chunks: as in
    LinearKernels.experts().

    chosen: int64 [T, k], all different. weights: float32 [T, k].
    """
    borders = (0, len(experts)) if chunks is None else chunks.borders
    parts = torch.zeros((len(borders) - 1, *x.shape), dtype=torch.float32, device=x.device)
    flat = chosen.flatten()
    order = flat.sort(stable=True).indices
    counts = torch.bincount(flat, minlength=len(experts)).tolist()
    tokens, shares = order // chosen.shape[1], weights.flatten()[order][:, None]
    first = 0
    for index, (expert, count) in enumerate(zip(experts, counts, strict=True)):
        if count and expert is not None:
            rows = tokens[first : first + count]
            own = None if batch is None else _of_rows(batch, rows)
            made = expert.down(expert.gate_up(x[rows], own), own)
            part = parts[bisect_right(borders, index) - 1]
            # (Each token is there once, so this is no sum of several.)
            part[rows] += made.float() * shares[first : first + count]
        first += count
    total = parts[0] if chunks is None else chunks.ranks.sum(parts, dtype=torch.float32)
    if beside is not None:
        total += beside.float()
    return total.to(x.dtype)


def _of_rows(batch: FlatBatch, rows: Tensor) -> FlatBatch | None:
    """A batch of some tokens, as far as products look at it."""
    if batch.adapters is None:
        return None
    return replace(batch, adapters=AdapterRows(batch.adapters.numbers[rows]))


class ReferenceExperts:
    """Expert by expert. Which of them compute depends on the tokens, so no step is like another."""

    is_replayable = False

    def __init__(
        self,
        experts: Sequence[Expert | None],
        routing: Routing,
        bias: Tensor | None,
        scales: Tensor | None = None,
        chunks: ExpertChunks | None = None,
    ) -> None:
        self._experts = tuple(experts)
        self._chunks = chunks
        self._routing = routing
        self._bias = bias
        self._scales = scales

    @property
    def weight_bytes(self) -> int:
        """Bytes of all experts."""
        held = [expert for expert in self._experts if expert is not None]
        return sum(part.weight_bytes for x in held for part in (x.gate_up, x.down))

    def __call__(
        self,
        x: Tensor,
        logits: Tensor,
        beside: Tensor | None = None,
        batch: FlatBatch | None = None,
    ) -> Tensor:
        """[T, E] of x [T, E], a router's logits of it, and what is added [T, E]."""
        chosen, weights = choose_experts(logits, self._routing, self._bias, self._scales)
        return compute_experts(x, chosen, weights, self._experts, beside, self._chunks, batch)
