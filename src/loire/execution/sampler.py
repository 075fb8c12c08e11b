"""From logits to tokens, for the whole batch at once, each row under its own parameters.

The order is vLLM's: logit bias, penalties, what may not come (min_tokens, constraint),
temperature, min-p, top-k, top-p. A row's token is a function of its logits, parameters and (seed,
choice, position) alone. Everything per row is gathered here on the host; what happens to the logits
is one operation of the backend, and its results come back at once.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from loire.base.step import TokenLogprobs
from loire.execution.constraints import Bits
from loire.execution.penalty_table import PenaltyTable
from loire.execution.random_numbers import uniform
from loire.execution.sampling_state import SamplingState
from loire.kernels.interface import Backend, LogitEdits, Penalties, SamplingRows, Transfers

NOTHING_LEFT = "no token may come next: allowed_token_ids, bad_words and the form exclude all"
NOT_FINITE = "the model gave logits that are not finite (NaN or infinity)"


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's outcome: a token, or the error that ends the request."""

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step has sampled, perhaps not computed yet."""

    tokens: Tensor
    """int64 [L], where the logits were; of a row that failed: any."""
    draws: Callable[[], list[Draw]]
    """Each row's outcome; waits for it."""


def sample(
    logits: Tensor,
    states: Sequence[SamplingState],
    positions: Sequence[int],
    backend: Backend,
    penalties: PenaltyTable,
) -> Sampled:
    """Choose one token per row.

    logits: float32 [L, V], overwritten. positions: of the token to choose, per row. penalties: the
    table that the states have their lines in.
    """
    before = _logprobs_asked_for(logits, states)
    allowed, errors = _allowed(states, logits.shape[1])
    rows = _sampling_rows(logits, states, positions, allowed, penalties)
    chosen = backend.sampling.choose(logits, rows)
    fetched = backend.transfers.fetch(chosen.tokens, chosen.finite)
    logprobs = [
        (members, gather_logprobs(values, chosen.tokens[members], num_top, backend.transfers))
        for num_top, (members, values) in before.items()
    ]

    def draws() -> list[Draw]:
        tokens, finite = (result.tolist() for result in fetched())
        entries: dict[int, TokenLogprobs] = {}
        for members, found in logprobs:
            entries |= zip(members, found(), strict=True)
        problems = errors | {row: NOT_FINITE for row, good in enumerate(finite) if not good}
        return [
            Draw(error=problems[row]) if row in problems else Draw(token, entries.get(row))
            for row, token in enumerate(tokens)
        ]

    return Sampled(chosen.tokens, draws)


def gather_logprobs(
    logprobs: Tensor, token_ids: Tensor, num_top: int, transfers: Transfers
) -> Callable[[], list[TokenLogprobs]]:
    """Per row of logprobs [L, V]: the given token, the num_top likeliest, and the token's rank.

    The function waits for them.
    """
    chosen = logprobs.gather(1, token_ids[:, None])
    ranks = (logprobs >= chosen).sum(dim=1)
    top, top_ids = logprobs.topk(min(num_top, logprobs.shape[1]), dim=1)
    all_ids = torch.cat([token_ids[:, None], top_ids], dim=1)
    fetched = transfers.fetch(all_ids, torch.cat([chosen, top], dim=1), ranks)

    def entries() -> list[TokenLogprobs]:
        columns = (result.tolist() for result in fetched())
        return [
            TokenLogprobs(tuple(ids), tuple(values), rank)
            for ids, values, rank in zip(*columns, strict=True)
        ]

    return entries


def _logprobs_asked_for(
    logits: Tensor, states: Sequence[SamplingState]
) -> dict[int, tuple[list[int], Tensor]]:
    """By how many of the likeliest are wanted: those rows, and their log-probabilities as the
    model gave them. (Which of equals are the likeliest may depend on how many are looked for.)"""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row, state in enumerate(states):
        if state.params.logprobs is not None:
            groups[state.params.logprobs].append(row)
    result = {}
    for num_top, members in groups.items():
        asked = logits if len(members) == len(logits) else logits[members]
        result[num_top] = members, torch.log_softmax(asked, dim=1)
    return result


def _allowed(
    states: Sequence[SamplingState], vocab_size: int
) -> tuple[dict[int, Bits], dict[int, str]]:
    """By row: what constraints and limits allow, and errors of rows that cannot go on."""
    allowed: dict[int, Bits] = {}
    errors: dict[int, str] = {}
    for row, state in enumerate(states):
        if state.limits is not None:
            allowed[row] = state.limits.bits()
        if state.constraint is not None:
            found = state.constraint.allowed()
            if isinstance(found, str):
                errors[row] = found
                continue
            # The tokenizer may know fewer tokens than the model has, or more.
            bits = np.zeros(-(-vocab_size // 32), np.int32)
            known = min(len(bits), len(found))
            bits[:known] = found[:known]
            allowed[row] = bits & allowed[row] if row in allowed else bits
        if row in allowed and not allowed[row].any():
            errors[row] = NOTHING_LEFT
    return allowed, errors


def _sampling_rows(
    logits: Tensor,
    states: Sequence[SamplingState],
    positions: Sequence[int],
    allowed: dict[int, Bits],
    penalties: PenaltyTable,
) -> SamplingRows:
    device = logits.device
    if all(state.params.greedy for state in states):
        rows = _greedy_rows(*logits.shape, device)
    else:
        rows = _drawn_rows(logits, states, positions)
    edits = _edits(states, positions, allowed, device)
    lines = _penalties(states, penalties, device)
    if edits is None and lines is None and not allowed:
        return rows
    mask = _mask(allowed, logits) if allowed else None
    return replace(rows, edits=edits, penalties=lines, allowed=mask)


@lru_cache(maxsize=32)
def _greedy_rows(num_rows: int, vocab_size: int, device: torch.device) -> SamplingRows:
    """Of rows that take the likeliest: always the same, and most steps are such."""
    zeros = torch.zeros(num_rows, device=device)
    top_k = torch.full((num_rows,), vocab_size, device=device)
    return SamplingRows(zeros, zeros, top_k, torch.ones_like(zeros), zeros.double())


def _drawn_rows(
    logits: Tensor, states: Sequence[SamplingState], positions: Sequence[int]
) -> SamplingRows:
    params = [state.params for state in states]
    draws = uniform([state.seed for state in states], [state.choice for state in states], positions)

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)

    return SamplingRows(
        temperature=column([0.0 if p.greedy else p.temperature for p in params]),
        min_p=column([p.min_p for p in params]),
        top_k=column([p.top_k or logits.shape[1] for p in params], torch.int64),
        top_p=column([p.top_p for p in params]),
        draw=torch.from_numpy(draws).to(logits.device),
    )


def _edits(
    states: Sequence[SamplingState],
    positions: Sequence[int],
    allowed: dict[int, Bits],
    device: torch.device,
) -> LogitEdits | None:
    """Biases, and minus infinity for what would end an output before min_tokens."""
    starts, tokens, addends = [0], list[int](), list[float]()
    for row, (state, position) in enumerate(zip(states, positions, strict=True)):
        bias = state.params.logit_bias
        if bias:
            tokens += bias
            addends += bias.values()
        stops = state.stop_token_ids
        is_early = position - state.num_prompt < state.params.min_tokens
        # A complete form ends, however early.
        if stops and is_early and not (row in allowed and _only(stops, allowed[row])):
            tokens += stops
            addends += [float("-inf")] * len(stops)
        starts.append(len(tokens))
    if not tokens:
        return None
    return LogitEdits(
        torch.tensor(starts, device=device),
        torch.tensor(tokens, device=device),
        torch.tensor(addends, dtype=torch.float32, device=device),
    )


def _only(token_ids: Sequence[int], allowed: Bits) -> bool:
    """Whether nothing but these may come."""
    others = allowed.copy().view(np.uint32)
    for token_id in token_ids:
        others[token_id // 32] &= ~np.uint32(1 << token_id % 32)
    return not others.any()


def _penalties(
    states: Sequence[SamplingState], table: PenaltyTable, device: torch.device
) -> Penalties | None:
    if all(state.place < 0 for state in states):
        return None
    params = [state.params for state in states]

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return Penalties(
        torch.tensor([state.place for state in states], device=device),
        table.counts,
        table.seen,
        column([p.repetition_penalty for p in params]),
        column([p.frequency_penalty for p in params]),
        column([p.presence_penalty for p in params]),
    )


def _mask(allowed: dict[int, Bits], logits: Tensor) -> Tensor:
    """int32 [L, ceil(V / 32)]; all ones for rows that nothing constrains."""
    rows, vocab_size = logits.shape
    words = np.full((rows, -(-vocab_size // 32)), -1, dtype=np.int32)
    for row, bits in allowed.items():
        words[row] = bits
    return torch.from_numpy(words).to(logits.device)
