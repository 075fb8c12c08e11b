"""Experts by the products of a backend: each computed once, for the tokens that chose it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from loire.kernels.interface import Expert


def compute_experts(
    x: Tensor, chosen: Tensor, weights: Tensor, experts: Sequence[Expert]
) -> Tensor:
    """See kernels.interface.LinearKernels.experts: its definition.

    A token's sum is taken in the order of the experts, so that it has the same bits in any company
    where products have.
    """
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    flat = chosen.flatten()
    order = flat.sort(stable=True).indices
    counts = torch.bincount(flat, minlength=len(experts)).tolist()
    tokens, shares = order // chosen.shape[1], weights.flatten()[order][:, None]
    first = 0
    for expert, count in zip(experts, counts, strict=True):
        if count:
            rows = tokens[first : first + count]
            made = expert.down(expert.gate_up(x[rows]))
            # (Each token is there once, so this is no sum of several.)
            total[rows] += made.float() * shares[first : first + count]
            first += count
    return total.to(x.dtype)
