"""From logits to tokens, for the whole batch at once, each row under its own parameters.

The order is vLLM's: logit bias, penalties, what may not come (min_tokens, constraint),
temperature, min-p, top-k, top-p. A row's token is a function of its logits, parameters and (seed,
choice, position) alone: rows are grouped by the width that their own top-k or top-p needs, never
by their neighbours', because the rounding of a sum depends on its length.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loire.base.sampling import SamplingParams
from loire.base.step import TokenLogprobs
from loire.execution.constraints import ConstraintError
from loire.execution.random_numbers import uniform
from loire.execution.sampling_state import SamplingState

TOP_P_WIDTH = 1024
"""Likeliest tokens looked at first for top-p; a flatter distribution gets a full sort."""

GREEDY, UNSORTED = 0, -1
"""Widths of rows that need no likeliest tokens sorted: they take the first, or draw from all."""
NEG_INF = float("-inf")
NOT_FINITE = "the model gave logits that are not finite (NaN or infinity)"


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's outcome: a token, or the error that ends the request."""

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


Largest = Callable[[Tensor], tuple[Tensor, Tensor]]
"""See kernels.interface.Backend.largest."""


def sample(
    logits: Tensor,
    states: Sequence[SamplingState],
    positions: Sequence[int],
    largest: Largest,
) -> list[Draw]:
    """Choose one token per row.

    logits: float32 [L, V], overwritten. positions: of the token to choose, per row.
    """
    likeliest, is_finite = largest(logits)
    finite: list[bool] = is_finite.tolist()
    raw = {
        row: torch.log_softmax(logits[row], dim=0)
        for row, state in enumerate(states)
        if finite[row] and state.params.logprobs is not None
    }
    errors = {row: NOT_FINITE for row in range(len(states)) if not finite[row]}
    adjusted = []
    for row, state in enumerate(states):
        if row in errors:
            continue
        try:
            if _adjust(logits[row], state, positions[row]):
                adjusted.append(row)
        except ConstraintError as error:
            errors[row] = str(error)
    good = [row for row in range(len(states)) if row not in errors]
    greedy: list[int] = likeliest.tolist()
    for row in adjusted:
        greedy[row] = int(logits[row].argmax())
    tokens = _choose(logits, good, states, positions, greedy)
    draws = []
    for row, state in enumerate(states):
        if row in errors:
            draws.append(Draw(error=errors[row]))
            continue
        logprobs = None
        if row in raw:
            assert state.params.logprobs is not None
            chosen = torch.tensor([tokens[row]], device=logits.device)
            logprobs = gather_logprobs(raw[row][None], chosen, state.params.logprobs)[0]
        draws.append(Draw(tokens[row], logprobs))
    return draws


def gather_logprobs(logprobs: Tensor, token_ids: Tensor, num_top: int) -> list[TokenLogprobs]:
    """Per row of logprobs [L, V]: the given token, the num_top likeliest, and the token's rank."""
    chosen = logprobs.gather(1, token_ids[:, None])
    ranks = (logprobs >= chosen).sum(dim=1)
    top, top_ids = logprobs.topk(min(num_top, logprobs.shape[1]), dim=1)
    all_ids = torch.cat([token_ids[:, None], top_ids], dim=1).tolist()
    values = torch.cat([chosen, top], dim=1).tolist()
    return [
        TokenLogprobs(tuple(ids), tuple(row), rank)
        for ids, row, rank in zip(all_ids, values, ranks.tolist(), strict=True)
    ]


def _adjust(logits: Tensor, state: SamplingState, position: int) -> bool:
    """Bias, min_tokens, penalties and constraint of one row, in place; whether it had any.

    Raises ConstraintError.
    """
    params = state.params
    forbids_stop = bool(state.stop_token_ids) and position - state.num_prompt < params.min_tokens
    if not (params.logit_bias or forbids_stop or state.has_penalties or state.constraint):
        return False
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
    if state.has_penalties:
        assert state.output_counts is not None
        assert state.seen is not None
        if params.repetition_penalty != 1.0:
            penalty = params.repetition_penalty
            scaled = torch.where(logits > 0, logits / penalty, logits * penalty)
            torch.where(state.seen, scaled, logits, out=logits)
        logits -= params.frequency_penalty * state.output_counts
        logits -= params.presence_penalty * (state.output_counts > 0)
    constraint = state.constraint
    forbidden = None if constraint is None else constraint.forbidden().to(logits.device)
    if forbidden is not None:
        logits.masked_fill_(forbidden, NEG_INF)
    if forbids_stop and not (forbidden is not None and _only(state.stop_token_ids, forbidden)):
        logits[list(state.stop_token_ids)] = NEG_INF
    return True


def _only(token_ids: Sequence[int], forbidden: Tensor) -> bool:
    """Whether nothing but these may come: a complete form ends, however early."""
    others = ~forbidden
    others[list(token_ids)] = False
    return not bool(others.any())


def _choose(
    logits: Tensor,
    rows: Sequence[int],
    states: Sequence[SamplingState],
    positions: Sequence[int],
    greedy: Sequence[int],
) -> dict[int, int]:
    tokens: dict[int, int] = {}
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        groups[_width(states[row], logits.shape[1])].append(row)
    for width, members in groups.items():
        if width == GREEDY:
            tokens.update((row, greedy[row]) for row in members)
            continue
        picked = logits if len(members) == len(logits) else logits[members]
        params = [states[row].params for row in members]
        draws = [uniform(states[r].seed, states[r].choice, positions[r]) for r in members]
        chosen = _draw(picked, _Knobs.of(params, draws, logits.device), width)
        tokens.update(zip(members, chosen, strict=True))
    return tokens


def _width(state: SamplingState, vocab_size: int) -> int:
    """How many likeliest tokens a row needs sorted, or GREEDY or UNSORTED."""
    params = state.params
    if params.greedy:
        return GREEDY
    if params.top_k:
        return min(max(64, 1 << (params.top_k - 1).bit_length()), vocab_size)
    if params.top_p < 1.0:
        return min(TOP_P_WIDTH, vocab_size)
    return UNSORTED


@dataclass(frozen=True, slots=True)
class _Knobs:
    """Parameters of a group of rows as columns, float32 [L, 1] unless said otherwise."""

    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    """int64; the vocabulary's size (or more) where it is off."""
    top_p: Tensor
    draw: Tensor
    """float64, in [0, 1)."""

    @staticmethod
    def of(
        params: Sequence[SamplingParams], draws: Sequence[float], device: torch.device
    ) -> "_Knobs":
        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        return _Knobs(
            temperature=column([p.temperature for p in params]),
            min_p=column([p.min_p for p in params]),
            top_k=column([p.top_k or 2**31 for p in params], torch.int64),
            top_p=column([p.top_p for p in params]),
            draw=column(draws, torch.float64),
        )

    def row(self, index: int) -> "_Knobs":
        """The knobs of one row."""
        at = slice(index, index + 1)
        return _Knobs(
            self.temperature[at], self.min_p[at], self.top_k[at], self.top_p[at], self.draw[at]
        )


def _draw(logits: Tensor, knobs: _Knobs, width: int) -> list[int]:
    scaled = logits / knobs.temperature
    if bool((knobs.min_p > 0).any()):
        floor = scaled.amax(dim=1, keepdim=True) + torch.log(knobs.min_p)
        scaled = scaled.masked_fill(scaled < floor, NEG_INF)
    vocab_size = logits.shape[1]
    if width == UNSORTED:
        return _invert(torch.softmax(scaled, dim=1), knobs.draw).tolist()
    top, ids = scaled.topk(width, dim=1)
    ranks = torch.arange(width, device=logits.device)[None]
    cut = knobs.top_k < vocab_size
    top = top.masked_fill(ranks >= knobs.top_k, NEG_INF)
    # Normalised over what top-k leaves, or over everything where it is off.
    norm = torch.where(
        cut, torch.logsumexp(top, dim=1, keepdim=True), torch.logsumexp(scaled, dim=1, keepdim=True)
    )
    probs = torch.exp(top - norm)
    reached = probs.cumsum(dim=1, dtype=torch.float64)
    kept = probs.masked_fill(reached - probs >= knobs.top_p, 0.0)
    chosen = ids.gather(1, _invert(kept, knobs.draw)[:, None])[:, 0].tolist()
    if width < vocab_size:
        short = ((reached[:, -1:] < knobs.top_p) & ~cut).flatten().tolist()
        for row in (row for row, is_short in enumerate(short) if is_short):
            chosen[row] = _draw(logits[row : row + 1], knobs.row(row), vocab_size)[0]
    return chosen


def _invert(probs: Tensor, draw: Tensor) -> Tensor:
    """Indices [L] where the cumulated probabilities [L, W] pass draw [L, 1] times their sum."""
    cumulated = probs.cumsum(dim=1, dtype=torch.float64)
    target = draw * cumulated[:, -1:]
    index = torch.searchsorted(cumulated, target, right=True)[:, 0]
    return index.clamp_(max=probs.shape[1] - 1)
