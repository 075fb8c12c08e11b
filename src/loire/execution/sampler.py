"""From logits to tokens, for the whole batch at once, each row under its own parameters.

The order is vLLM's: logit bias, penalties, what may not come (min_tokens, constraint),
temperature, min-p, top-k, top-p. A row's token is a function of its logits, parameters and (seed,
choice, position) alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loire.base.step import TokenLogprobs
from loire.execution.constraints import masks_of
from loire.execution.random_numbers import uniform
from loire.execution.sampling_state import SamplingState
from loire.kernels.interface import SamplingKnobs

NEG_INF = float("-inf")
NOT_FINITE = "the model gave logits that are not finite (NaN or infinity)"


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's outcome: a token, or the error that ends the request."""

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


DrawRows = Callable[[Tensor, SamplingKnobs], Tensor]


class Rows(Protocol):
    """What a backend does with rows of logits: see kernels.interface.Backend."""

    def largest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the largest entries, and whether all are finite."""
        ...

    def draw(self, logits: Tensor, knobs: SamplingKnobs) -> Tensor:
        """A token from each row."""
        ...


def sample(
    logits: Tensor,
    states: Sequence[SamplingState],
    positions: Sequence[int],
    backend: Rows,
) -> list[Draw]:
    """Choose one token per row.

    logits: float32 [L, V], overwritten. positions: of the token to choose, per row.
    """
    likeliest, is_finite = backend.largest(logits)
    finite: list[bool] = is_finite.tolist()
    raw = {
        row: torch.log_softmax(logits[row], dim=0)
        for row, state in enumerate(states)
        if finite[row] and state.params.logprobs is not None
    }
    errors = {row: NOT_FINITE for row in range(len(states)) if not finite[row]}
    masks = masks_of({row: state.constraint for row, state in enumerate(states)}, logits.device)
    errors |= {row: mask for row, mask in masks.items() if isinstance(mask, str)}
    adjusted = []
    for row, state in enumerate(states):
        mask = masks.get(row)
        if row in errors or isinstance(mask, str):
            continue
        if _adjust(logits[row], state, positions[row], mask):
            adjusted.append(row)
    good = [row for row in range(len(states)) if row not in errors]
    greedy: list[int] = likeliest.tolist()
    for row in adjusted:
        greedy[row] = int(logits[row].argmax())
    tokens = _choose(logits, good, states, positions, greedy, backend.draw)
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


def _adjust(logits: Tensor, state: SamplingState, position: int, forbidden: Tensor | None) -> bool:
    """Bias, min_tokens, penalties and constraint of one row, in place; whether it had any.

    forbidden: bool [V], of a constraint.
    """
    params = state.params
    forbids_stop = bool(state.stop_token_ids) and position - state.num_prompt < params.min_tokens
    if not (params.logit_bias or forbids_stop or state.has_penalties or forbidden is not None):
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
    draw: DrawRows,
) -> dict[int, int]:
    tokens = {row: greedy[row] for row in rows if states[row].params.greedy}
    drawn = [row for row in rows if row not in tokens]
    if drawn:
        picked = logits if len(drawn) == len(logits) else logits[drawn]
        knobs = _knobs([states[row] for row in drawn], [positions[row] for row in drawn], logits)
        tokens.update(zip(drawn, draw(picked, knobs).tolist(), strict=True))
    return tokens


def _knobs(
    states: Sequence[SamplingState], positions: Sequence[int], logits: Tensor
) -> SamplingKnobs:
    params = [state.params for state in states]
    draws = [
        uniform(state.seed, state.choice, position)
        for state, position in zip(states, positions, strict=True)
    ]

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)

    return SamplingKnobs(
        temperature=column([p.temperature for p in params]),
        min_p=column([p.min_p for p in params]),
        top_k=column([p.top_k or logits.shape[1] for p in params], torch.int64),
        top_p=column([p.top_p for p in params]),
        draw=column(draws, torch.float64),
    )
