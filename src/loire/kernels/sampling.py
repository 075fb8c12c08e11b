"""Choosing tokens from logits in plain torch: see kernels.interface.SamplingRows.

Rows are grouped by the number of likeliest tokens that their own knobs ask to be sorted, never by
their neighbours', because the rounding of a sum depends on its length.
"""

from collections import defaultdict

import torch
from torch import Tensor

from loire.kernels.interface import Chosen, Penalties, SamplingRows

TOP_P_WIDTH = 1024
"""Likeliest tokens looked at first for top-p; a flatter distribution gets a full sort."""

UNSORTED = -1
"""Width of rows that need no likeliest tokens sorted: they draw from all."""


class ReferenceSampling:
    """See kernels.interface.SamplingKernels."""

    def choose(self, logits: Tensor, rows: SamplingRows) -> Chosen:
        """A token from each row of logits [L, V]."""
        low, high = torch.aminmax(logits, dim=1)
        finite = torch.isfinite(low) & torch.isfinite(high)
        logits.masked_fill_(~finite[:, None], 0.0)
        _adjust(logits, rows)
        tokens = logits.argmax(dim=1)
        [drawn] = (rows.temperature > 0).nonzero(as_tuple=True)
        if len(drawn) == len(logits):
            tokens = draw(logits, rows)
        elif len(drawn):
            tokens[drawn] = draw(logits[drawn], _rows(rows, drawn))
        if rows.penalties is not None:
            _count(rows.penalties, tokens, finite)
        return Chosen(tokens, finite)


def _adjust(logits: Tensor, rows: SamplingRows) -> None:
    """Edits, penalties and what is not allowed, in place."""
    if rows.edits is not None:
        starts = rows.edits.starts
        index = torch.arange(len(logits), device=logits.device)
        index = index.repeat_interleave(starts[1:] - starts[:-1])
        logits.index_put_((index, rows.edits.tokens), rows.edits.addends, accumulate=True)
    if rows.penalties is not None:
        _penalise(logits, rows.penalties)
    if rows.allowed is not None:
        bits = torch.arange(32, dtype=torch.int32, device=logits.device)
        allowed = (rows.allowed[:, :, None] >> bits & 1).flatten(1)[:, : logits.shape[1]]
        logits.masked_fill_(allowed == 0, float("-inf"))


def _penalise(logits: Tensor, penalties: Penalties) -> None:
    [rows] = (penalties.places >= 0).nonzero(as_tuple=True)
    lines = penalties.places[rows]
    counts = penalties.counts[lines].float()
    repetition = penalties.repetition[rows, None]
    given = logits[rows]
    scaled = torch.where(given > 0, given / repetition, given * repetition)
    result = torch.where(penalties.seen[lines], scaled, given)
    result -= penalties.frequency[rows, None] * counts
    result -= penalties.presence[rows, None] * (counts > 0)
    logits[rows] = result


def _count(penalties: Penalties, tokens: Tensor, finite: Tensor) -> None:
    [rows] = ((penalties.places >= 0) & finite).nonzero(as_tuple=True)
    lines, chosen = penalties.places[rows], tokens[rows]
    penalties.counts[lines, chosen] += 1
    penalties.seen[lines, chosen] = True


def draw(logits: Tensor, knobs: SamplingRows) -> Tensor:
    """A token (int64 [L]) drawn from each row of logits [L, V], none of temperature 0."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    asked = zip(knobs.top_k.tolist(), knobs.top_p.tolist(), strict=True)
    for row, (top_k, top_p) in enumerate(asked):
        groups[_width(top_k, top_p, logits.shape[1])].append(row)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for width, members in groups.items():
        rows = torch.tensor(members, device=logits.device)
        tokens[rows] = _draw(logits[rows], _rows(knobs, rows), width)
    return tokens


def _width(top_k: int, top_p: float, vocab_size: int) -> int:
    """How many likeliest tokens a row needs sorted, or UNSORTED."""
    if top_k < vocab_size:
        return min(max(64, 1 << (top_k - 1).bit_length()), vocab_size)
    return min(TOP_P_WIDTH, vocab_size) if top_p < 1.0 else UNSORTED


def _rows(knobs: SamplingRows, rows: Tensor) -> SamplingRows:
    """What these rows are drawn under."""
    return SamplingRows(
        knobs.temperature[rows],
        knobs.min_p[rows],
        knobs.top_k[rows],
        knobs.top_p[rows],
        knobs.draw[rows],
    )


def _draw(logits: Tensor, knobs: SamplingRows, width: int) -> Tensor:
    scaled = logits / knobs.temperature[:, None]
    if bool((knobs.min_p > 0).any()):
        floor = scaled.amax(dim=1, keepdim=True) + torch.log(knobs.min_p)[:, None]
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    vocab_size = logits.shape[1]
    if width == UNSORTED:
        return _invert(torch.softmax(scaled, dim=1), knobs.draw)
    top, ids = _largest(scaled, width)
    ranks = torch.arange(width, device=logits.device)[None]
    cut = (knobs.top_k < vocab_size)[:, None]
    top = top.masked_fill(ranks >= knobs.top_k[:, None], float("-inf"))
    # Normalised over what top-k leaves, or over everything where it is off.
    norm = torch.where(
        cut, torch.logsumexp(top, dim=1, keepdim=True), torch.logsumexp(scaled, dim=1, keepdim=True)
    )
    probs = torch.exp(top - norm)
    reached = probs.cumsum(dim=1, dtype=torch.float64)
    top_p = knobs.top_p[:, None]
    kept = probs.masked_fill((reached - probs >= top_p) & (top_p < 1.0), 0.0)
    chosen = _invert(torch.zeros_like(scaled).scatter_(1, ids, kept), knobs.draw)
    if width < vocab_size:
        [short] = ((reached[:, -1:] < top_p) & ~cut).flatten().nonzero(as_tuple=True)
        if len(short):
            chosen[short] = _draw(logits[short], _rows(knobs, short), vocab_size)
    return chosen


def _largest(scaled: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The largest of each row and their indices [L, width], in order; of equals the first ones."""
    top, ids = scaled.topk(width, dim=1)
    least = top[:, -1:]
    more = (scaled >= least).sum(dim=1) > width
    if bool((more & (least[:, 0] > float("-inf"))).any()):
        # topk takes any of equals. A stable sort takes the first ones, but is slow.
        top, ids = scaled.sort(dim=1, descending=True, stable=True)
        return top[:, :width], ids[:, :width]
    ids, order = ids.sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return top, ids.gather(1, order)


def _invert(weights: Tensor, draw: Tensor) -> Tensor:
    """Indices [L] at which the sums of weights [L, V] pass draw [L] times the whole."""
    cumulated = weights.cumsum(dim=1, dtype=torch.float64)
    target = draw[:, None] * cumulated[:, -1:]
    index = torch.searchsorted(cumulated, target, right=True)[:, 0]
    return index.clamp_(max=weights.shape[1] - 1)
