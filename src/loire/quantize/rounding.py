"""Codes and scales for a weight, such that what it makes of its usual inputs changes little.

The error that is made small is that of the product: of W x, summed over the inputs x that were seen
in calibration. With their second moments H = sum of x x^T it is trace(D H D^T) for a change D of W.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from loire.quantize.levels import Levels, half, safe

SCALE_STEPS = 16
LEAST_SCALE = 0.5
"""Of the scale that maps a group's largest number to the largest level: outliers may be cut."""
DAMPING = 0.1
"""Added to the diagonal of H, as a share of its mean: what was rarely seen still counts."""
ROWS = 2**12
"""Rows of a weight that are rounded with feedback at a time."""
NUMBERS = 2**18
"""Of a weight that are rounded at a time where each is for itself: as many as a cache holds."""
SAMPLED_ROWS = 128
"""Of which an error is estimated."""


def round_to_nearest(weight: Tensor, importance: Tensor, levels: Levels) -> Tensor:
    """Blocks (uint8 [out, bytes]) of weight [out, in], each number rounded for itself.

    importance: float32 [in], the mean squares of inputs.
    """
    found = []
    for rows in weight.float().split(max(1, NUMBERS // weight.shape[1])):
        groups = rows.unflatten(1, (-1, levels.group))
        scales = levels.held(best_scales(groups, importance.view(-1, levels.group), levels))
        codes = levels.nearest(groups / safe(scales)[..., None])
        found.append(levels.pack(codes, scales))
    return torch.cat(found)


def round_with_feedback(weight: Tensor, moments: Tensor, levels: Levels) -> Tensor:
    """Blocks of weight [out, in]; each column's error is made up for in those not yet rounded
    (Frantar et al. 2022, "GPTQ").

    moments: H, float32 [in, in].
    """
    inverse = _inverse_factor(moments)
    importance = 1.0 / inverse.diagonal().square()
    found = []
    for rows in weight.float().split(ROWS):
        codes, scales = _rows_with_feedback(rows.clone(), inverse, importance, levels)
        found.append(levels.pack(codes, scales))
    return torch.cat(found)


def best_scales(groups: Tensor, importance: Tensor, levels: Levels) -> Tensor:
    """float32 [rows, groups], as half precision holds them: the scales with the least error.

    groups: float32 [rows, groups, inputs of one]. importance: [groups, inputs] or the same of all.
    """
    outermost = groups.abs().amax(dim=-1) / levels.largest
    least, best = torch.full_like(outermost, torch.inf), torch.zeros_like(outermost)
    for share in torch.linspace(LEAST_SCALE, 1.0, SCALE_STEPS):
        scales = outermost * share
        numbers = levels.numbers(levels.nearest(groups / safe(scales)[..., None]))
        # The best scale for these codes.
        upper = (importance * groups * numbers).sum(-1)
        lower = (importance * numbers.square()).sum(-1)
        scales = half(upper / lower.clamp_min(torch.finfo(torch.float32).tiny))
        errors = (importance * (groups - numbers * scales[..., None]).square()).sum(-1)
        better = errors < least
        least, best = torch.where(better, errors, least), torch.where(better, scales, best)
    return best


def weighted_error(weight: Tensor, importance: Tensor, levels: Levels) -> float:
    """The error of round_to_nearest as a share of the product's mean square, estimated of some
    rows; H is taken to be diagonal."""
    rows = weight[:: -(-len(weight) // SAMPLED_ROWS)].float()
    groups, weights = rows.unflatten(1, (-1, levels.group)), importance.view(-1, levels.group)
    scales = levels.held(best_scales(groups, weights, levels))[..., None]
    rounded = levels.numbers(levels.nearest(groups / safe(scales))) * scales
    wrong = float((weights * (groups - rounded).square()).sum())
    right = float((weights * groups.square()).sum())
    return wrong / max(right, torch.finfo(torch.float32).tiny)


def _rows_with_feedback(
    rows: Tensor, inverse: Tensor, importance: Tensor, levels: Levels
) -> tuple[Tensor, Tensor]:
    """Codes [rows, groups, inputs] and scales [rows, groups]. rows is overwritten."""
    size = levels.group
    codes = torch.empty(rows.shape, dtype=torch.int64)
    scales = torch.empty(len(rows), rows.shape[1] // size)
    for first, end in _spans(rows.shape[1], size):
        if first % levels.block == 0:
            block = slice(first, first + levels.block)
            groups = rows[:, block].contiguous().unflatten(1, (-1, size))
            best = best_scales(groups, importance[block].view(-1, size), levels)
            scales[:, first // size : (first + levels.block) // size] = levels.held(best)
        scale = scales[:, first // size]
        group = rows[:, first:end]
        errors = torch.empty_like(group)
        factors = inverse[first:end, first:end]
        for column in range(size):
            number = group[:, column]
            code = levels.nearest(number / safe(scale))
            codes[:, first + column] = code
            error = (number - levels.numbers(code) * scale) / factors[column, column]
            group[:, column:] -= torch.outer(error, factors[column, column:])
            errors[:, column] = error
        rows[:, end:] -= errors @ inverse[first:end, end:]
    return codes.unflatten(1, (-1, size)), scales


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of H's inverse, float32 [in, in]: row i says how an error in input
    i is best made up for in those after it."""
    wide = moments.double()
    mean = wide.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    damped = wide + torch.eye(len(wide), dtype=torch.float64) * (DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def _spans(length: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, first + size) for first in range(0, length, size))
