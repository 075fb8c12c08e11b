"""Codes and scales for a weight, such that what it makes of its usual inputs changes little.

The error that is made small is that of the product: of W x, summed over the inputs x that were seen
in calibration. With their second moments H = sum of x x^T it is trace(D H D^T) for a change D of W.
"""

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
SPAN = 64
"""Columns after which an error reaches those further on."""
SOLVED_NUMBERS = 2**21
"""What rows have for whose scales are solved at a time: of each the groups times the inputs."""
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
    (Frantar et al. 2022, "GPTQ"), those with the largest inputs first. Then all scales of a row are
    the best for its codes.

    moments: H, float32 [in, in].
    """
    order = moments.diagonal().argsort(descending=True)
    factor = _inverse_factor(moments[order][:, order])
    importance = torch.empty(len(order))
    importance[order] = 1.0 / factor.diagonal().square()
    found = []
    for rows in weight.float().split(ROWS):
        groups = rows.unflatten(1, (-1, levels.group))
        scales = levels.held(best_scales(groups, importance.view(-1, levels.group), levels))
        codes = _codes_with_feedback(rows, scales, order, factor, levels)
        found.append(levels.pack(codes, levels.held(_best_for_codes(codes, rows, moments, levels))))
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


def _codes_with_feedback(
    rows: Tensor, scales: Tensor, order: Tensor, factor: Tensor, levels: Levels
) -> Tensor:
    """int64 [rows, groups, inputs of one]. order: of columns; factor: of H in that order."""
    numbers, scales = rows[:, order], scales[:, order // levels.group]
    codes = torch.empty(rows.shape, dtype=torch.int64)
    for columns in torch.arange(len(order)).split(SPAN):
        first, end = int(columns[0]), int(columns[-1]) + 1
        group = numbers[:, first:end]
        errors = torch.empty_like(group)
        factors = factor[first:end, first:end]
        for column in range(end - first):
            number, scale = group[:, column], scales[:, first + column]
            code = levels.nearest(number / safe(scale))
            codes[:, order[first + column]] = code
            error = (number - levels.numbers(code) * scale) / factors[column, column]
            group[:, column:] -= torch.outer(error, factors[column, column:])
            errors[:, column] = error
        numbers[:, end:] -= errors @ factor[first:end, end:]
    grouped: Tensor = codes.unflatten(1, (-1, levels.group))
    return grouped


def _best_for_codes(codes: Tensor, rows: Tensor, moments: Tensor, levels: Levels) -> Tensor:
    """float32 [rows, groups]: the scales with the least error of the product, all of a row
    together. codes: [rows, groups, inputs of one]."""
    by_group = _damped(moments).float().unflatten(0, (-1, levels.group))
    together = max(1, SOLVED_NUMBERS // (len(by_group) * len(moments)))
    found = []
    for own, wanted in zip(codes.split(together), rows.split(together), strict=True):
        numbers = levels.numbers(own)
        # Of each group's numbers with the inputs of all groups.
        pulls = torch.einsum("rgi,gij->rgj", numbers, by_group)
        right = torch.einsum("rgj,rj->rg", pulls, wanted)
        left = torch.einsum("rgkj,rkj->rgk", pulls.unflatten(2, numbers.shape[1:]), numbers)
        # (A group of zeros has no part in the product, and any scale.)
        ridge = left.diagonal(dim1=1, dim2=2) * 1e-4 + torch.finfo(torch.float32).tiny
        found.append(torch.linalg.solve(left + torch.diag_embed(ridge), right))
    return torch.cat(found)


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of H's inverse, float32 [in, in]: row i says how an error in input
    i is best made up for in those after it."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(moments)))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def _damped(moments: Tensor) -> Tensor:
    """float64 [in, in], in units of the mean of the diagonal."""
    wide = moments.double()
    mean = wide.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return wide / mean + DAMPING * torch.eye(len(wide), dtype=torch.float64)
