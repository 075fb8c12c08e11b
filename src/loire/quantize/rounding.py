"""Codes and scales for a weight, such that what it makes of its usual inputs changes little.

The error that is made small is that of the product: of W x, summed over the inputs x that were seen
in calibration. With their second moments H = sum of x x^T it is trace(D H D^T) for a change D of W.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loire.checkpoint.formats import LEVEL_ROWS
from loire.kernels.block_formats import StoredTensor
from loire.quantize.levels import Levels, half, safe
from loire.quantize.palettes import begin, fitted

SCALE_STEPS, FIRST_STEPS = 16, 6
"""How many scales are tried; before levels are fitted fewer."""
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


def round_to_nearest(weight: Tensor, importance: Tensor, levels: Levels) -> StoredTensor:
    """A weight [out, in], each number rounded for itself.

    importance: float32 [in], the mean squares of inputs.
    """
    found = []
    for rows in weight.float().split(_together(weight.shape[1])):
        groups = rows.unflatten(1, (-1, levels.group))
        scales, own = _scales_and_levels(groups, importance, levels)
        codes = levels.nearest(groups / safe(scales)[..., None], own)
        found.append(levels.pack(codes, scales, own))
    return _joined(found)


def round_with_feedback(weight: Tensor, moments: Tensor, levels: Levels) -> StoredTensor:
    """A weight [out, in]; each column's error is made up for in those not yet rounded (Frantar et
    al. 2022, "GPTQ"), those with the largest inputs first. Then all scales of a row are the best
    for its codes.

    moments: H, float32 [in, in].
    """
    order = moments.diagonal().argsort(descending=True)
    factor = _inverse_factor(moments[order][:, order])
    importance = torch.empty(len(order))
    importance[order] = 1.0 / factor.diagonal().square()
    found = []
    for rows in weight.float().split(ROWS):
        groups = rows.unflatten(1, (-1, levels.group))
        parts = groups.split(_together(rows.shape[1]))
        chosen = [_scales_and_levels(part, importance, levels) for part in parts]
        scales = torch.cat([scales for scales, _ in chosen])
        fits = [own for _, own in chosen if own is not None]
        own = torch.cat(fits) if fits else None
        codes = _codes_with_feedback(rows, scales, order, factor, levels, own)
        scales = levels.held(_best_for_codes(codes, rows, moments, levels, own))
        found.append(levels.pack(codes, scales, own))
    return _joined(found)


def best_scales(
    groups: Tensor,
    importance: Tensor,
    levels: Levels,
    own: Tensor | None = None,
    steps: int = SCALE_STEPS,
) -> Tensor:
    """float32 [rows, groups], as half precision holds them: the scales with the least error.

    groups: float32 [rows, groups, inputs of one]. importance: [groups, inputs] or the same of all.
    own: levels of the rows, which a scale may turn around.
    """
    least, best = torch.full_like(groups[..., 0], torch.inf), torch.zeros_like(groups[..., 0])
    for scales in _scales_to_try(groups, levels, own, steps):
        numbers = levels.numbers(levels.nearest(groups / safe(scales)[..., None], own), own)
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
    scales, own = _scales_and_levels(groups, importance, levels)
    codes = levels.nearest(groups / safe(scales)[..., None], own)
    rounded = levels.numbers(codes, own) * scales[..., None]
    wrong = float((weights * (groups - rounded).square()).sum())
    right = float((weights * groups.square()).sum())
    return wrong / max(right, torch.finfo(torch.float32).tiny)


def _together(in_features: int) -> int:
    """Rows of whole groups that share levels, about as many as a cache holds."""
    return max(1, NUMBERS // in_features // LEVEL_ROWS) * LEVEL_ROWS


def _scales_and_levels(
    groups: Tensor, importance: Tensor, levels: Levels
) -> tuple[Tensor, Tensor | None]:
    """float32 [rows, groups] as the format holds them, and where they are fitted levels, whole
    numbers, float32 [rows, values]. importance: float32 [in]."""
    weights, own = importance.view(-1, levels.group), None
    if levels.fitted:
        own = begin(levels, len(groups))
        scales = best_scales(groups, weights, levels, own, FIRST_STEPS)
        own = fitted(groups, weights, levels, scales, own)
    return levels.held(best_scales(groups, weights, levels, own)), own


def _scales_to_try(
    groups: Tensor, levels: Levels, own: Tensor | None, steps: int
) -> Iterator[Tensor]:
    """float32 [rows, groups], from the one that maps a group's largest number to the outermost
    level downwards; where levels are not symmetric, those that turn them around, too."""
    if own is None:
        found = [groups.abs().amax(dim=-1) / levels.largest]
    else:
        up, down = groups.amax(dim=-1), -groups.amin(dim=-1)
        top, bottom = own[:, -1:].clamp_min(1), -own[:, :1].clamp_max(-1)
        found = [torch.maximum(up / top, down / bottom)]
        if not torch.equal(top, bottom):
            found.append(-torch.maximum(up / bottom, down / top))
    for share in torch.linspace(LEAST_SCALE, 1.0, steps):
        yield from (outermost * share for outermost in found)


def _joined(parts: Sequence[StoredTensor]) -> StoredTensor:
    """One below the other."""
    levels = [part.levels for part in parts if part.levels is not None]
    blocks = torch.cat([part.blocks for part in parts])
    return replace(parts[0], blocks=blocks, levels=torch.cat(levels) if levels else None)


def _codes_with_feedback(
    rows: Tensor,
    scales: Tensor,
    order: Tensor,
    factor: Tensor,
    levels: Levels,
    own: Tensor | None,
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
            code = levels.nearest(number / safe(scale), own)
            codes[:, order[first + column]] = code
            error = (number - levels.numbers(code, own) * scale) / factors[column, column]
            group[:, column:] -= torch.outer(error, factors[column, column:])
            errors[:, column] = error
        numbers[:, end:] -= errors @ factor[first:end, end:]
    grouped: Tensor = codes.unflatten(1, (-1, levels.group))
    return grouped


def _best_for_codes(
    codes: Tensor, rows: Tensor, moments: Tensor, levels: Levels, own: Tensor | None
) -> Tensor:
    """float32 [rows, groups]: the scales with the least error of the product, all of a row
    together. codes: [rows, groups, inputs of one]."""
    by_group = _damped(moments).float().unflatten(0, (-1, levels.group))
    together = max(1, SOLVED_NUMBERS // (len(by_group) * len(moments)))
    found = []
    for first in range(0, len(codes), together):
        some = slice(first, first + together)
        numbers = levels.numbers(codes[some], None if own is None else own[some])
        # Of each group's numbers with the inputs of all groups.
        pulls = torch.einsum("rgi,gij->rgj", numbers, by_group)
        right = torch.einsum("rgj,rj->rg", pulls, rows[some])
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
