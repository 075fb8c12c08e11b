"""Palettes of a weight's own: levels for every LEVEL_ROWS rows, fitted to their numbers."""

import torch
from torch import Tensor

from loire.checkpoint.formats import LEVEL_ROWS
from loire.quantize.levels import Levels, half, safe

LARGEST = 127
"""Of the levels of a row: the largest magnitude."""
ROUNDS = 6


def begin(levels: Levels, rows: int) -> Tensor:
    """What fitting begins with, float32 [rows, values]."""
    return torch.tensor(levels.values, dtype=torch.float32).expand(rows, -1)


def fitted(
    groups: Tensor, importance: Tensor, levels: Levels, scales: Tensor, own: Tensor
) -> Tensor:
    """Levels with a smaller error than those before, whole numbers, float32 [rows, values]: k-means
    weighted by importance, in turns with the scales.

    groups: float32 [rows, groups, inputs of one]; importance: [groups, inputs]; scales: [rows,
    groups], the best for the levels `own`.
    """
    for _ in range(ROUNDS):
        codes = levels.nearest(groups / safe(scales)[..., None], own)
        weights = importance * scales[..., None]
        upper = _of_each_level(weights * groups, codes, own)
        lower = _of_each_level(weights * scales[..., None], codes, own)
        own = torch.where(lower > 0, upper / safe(lower), own)
        own = own * (LARGEST / safe(own.abs().amax(dim=1, keepdim=True)))
        numbers = levels.numbers(codes, own)
        upper = (importance * groups * numbers).sum(-1)
        lower = (importance * numbers.square()).sum(-1)
        scales = half(torch.where(lower > 0, upper / safe(lower), scales))
    return own.round()


def _of_each_level(values: Tensor, codes: Tensor, own: Tensor) -> Tensor:
    """Sums of values [rows, groups, inputs] whose codes are the same, over the rows that share
    levels: float32 [rows, levels]."""
    sums = torch.zeros(own.shape).scatter_add_(1, codes.flatten(1), values.flatten(1))
    tables = torch.arange(len(sums)) // LEVEL_ROWS
    together = torch.zeros(int(tables[-1]) + 1, own.shape[1]).index_add_(0, tables, sums)
    return together[tables]
