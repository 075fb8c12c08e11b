"""Mixers with a state in plain torch, on any device: their definition.

Rows of one token are computed together. A longer row goes through its recurrence in chunks, as
products of matrices (Yang et al. 2024, "Parallelizing linear transformers with the delta rule over
sequence length"; Dao and Gu 2024, "Transformers are SSMs"). Chunks end at fixed positions of the
sequence, so that in whatever pieces a prompt comes, most sums are taken in the same order; those at
the pieces' ends are not.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from loire.kernels.interface import (
    AttentionPlan,
    DeltaNetShape,
    DeltaNetWeights,
    FlatBatch,
    Mamba2Shape,
    Mamba2Weights,
    StateCache,
    StatePlaces,
)
from loire.kernels.reference_pointwise import rms_norm

CHUNK = 64
"""Positions. Within a chunk the work grows with its square."""
LENGTH_EPS = 1e-6


class ReferenceRecurrent:
    """See kernels.interface.RecurrentKernels."""

    is_replayable = False

    def plan(self, batch: FlatBatch) -> AttentionPlan | None:
        """Nothing to work out."""
        return None

    def gated_delta_net(
        self,
        qkv_gate: Tensor,
        beta_alpha: Tensor,
        weights: DeltaNetWeights,
        shape: DeltaNetShape,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: StateCache,
    ) -> Tensor:
        """[T, value_size]."""
        inputs, states = cache.arrays
        qkv, gate = qkv_gate.float().split([shape.channels, shape.value_size], dim=1)
        qkv = F.silu(convolve(qkv, weights.filters, batch, cache, inputs))
        queries, keys, values = _heads(qkv, shape)
        beta, alpha = beta_alpha.float().chunk(2, dim=1)
        log_decay = -weights.rate * F.softplus(alpha + weights.decay_bias)
        beta = beta.sigmoid()
        given = (queries, keys, values, log_decay, beta)
        out = scan(delta_chunk, delta_step, given, torch.empty_like(values), batch, cache, states)
        normed = rms_norm(out, weights.norm, shape.eps).flatten(1)
        return (normed * F.silu(gate)).to(qkv_gate.dtype)

    def mamba2(
        self,
        projected: Tensor,
        weights: Mamba2Weights,
        shape: Mamba2Shape,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: StateCache,
    ) -> Tensor:
        """[T, size]."""
        inputs, states = cache.arrays
        gate, mixed, step = projected.float().split(
            [shape.size, shape.channels, shape.num_heads], dim=1
        )
        mixed = convolve(mixed, weights.filters, batch, cache, inputs)
        if weights.filter_bias is not None:
            mixed = mixed + weights.filter_bias
        x, b, c = F.silu(mixed).split(
            [shape.size, *[(shape.channels - shape.size) // 2] * 2], dim=1
        )
        x = x.unflatten(1, (shape.num_heads, shape.head_dim))
        written, read = (
            part.unflatten(1, (shape.num_groups, shape.state_dim)).repeat_interleave(
                shape.num_heads // shape.num_groups, dim=1
            )
            for part in (b, c)
        )
        step = F.softplus(step + weights.step_bias).clamp(shape.least_step, shape.most_step)
        given = (read, written, x * step[..., None], -weights.rate * step)
        out = scan(mamba2_chunk, mamba2_step, given, torch.empty_like(x), batch, cache, states)
        gated = (out + weights.skip[:, None] * x).flatten(1) * F.silu(gate)
        grouped = gated.unflatten(1, (shape.num_groups, -1))
        norm = weights.norm.unflatten(0, (shape.num_groups, -1))
        return rms_norm(grouped, norm, shape.eps).flatten(1).to(projected.dtype)

    def short_convolution(
        self,
        gated: Tensor,
        filters: Tensor,
        bias: Tensor | None,
        batch: FlatBatch,
        plan: AttentionPlan | None,
        cache: StateCache,
    ) -> Tensor:
        """[T, E]."""
        first, second, x = gated.float().chunk(3, dim=1)
        convolved = convolve(first * x, filters, batch, cache, cache.arrays[0])
        if bias is not None:
            convolved = convolved + bias
        return (second * convolved).to(gated.dtype)


def convolve(
    x: Tensor, filters: Tensor, batch: FlatBatch, cache: StateCache, inputs: StatePlaces
) -> Tensor:
    """x [T, C] along each row, by channel, with filters [W, C]; the last inputs are kept then."""
    width, tokens = len(filters), len(x)
    before = read_state(cache, inputs, batch.block_tables)[:, 0]
    lens = torch.tensor(batch.host_query_lens, device=x.device)
    # Each row's last inputs of earlier steps stand before its own.
    ends = torch.cumsum(lens + width - 1, dim=0)
    row_of = torch.repeat_interleave(torch.arange(len(lens), device=x.device), lens)
    own = torch.arange(tokens, device=x.device) + (row_of + 1) * (width - 1)
    ahead = (ends - lens)[:, None] - torch.arange(width - 1, 0, -1, device=x.device)
    joined = x.new_empty(tokens + len(lens) * (width - 1), x.shape[1])
    joined[own], joined[ahead] = x, before
    kept = ends[:, None] - torch.arange(width - 1, 0, -1, device=x.device)
    write_state(cache, inputs, batch.block_tables, joined[kept][:, None])
    total = joined[own - width + 1] * filters[0]
    for tap in range(1, width):
        total = total + joined[own - width + 1 + tap] * filters[tap]
    return total


Recurrence = Callable[..., tuple[Tensor, Tensor]]
"""Of what each token gives, and of states: results, and states afterwards."""


def scan(
    chunk: Recurrence,
    step: Recurrence,
    given: tuple[Tensor, ...],
    out: Tensor,
    batch: FlatBatch,
    cache: StateCache,
    states: StatePlaces,
) -> Tensor:
    """Results, put into out [T, ...], of what each token gives (each [T, ...]), and the states that
    are left. chunk: for some tokens of one row; step: for one token of each of some rows."""
    first = 0
    singles = []
    for row, (count, context) in enumerate(
        zip(batch.host_query_lens, batch.host_context_lens, strict=True)
    ):
        if count == 1:
            singles.append((row, first))
        else:
            table = batch.block_tables[row : row + 1]
            state = read_state(cache, states, table)[0]
            for here, size in _chunks(context - count, count):
                part = slice(first + here, first + here + size)
                out[part], state = chunk(*(x[part] for x in given), state)
            write_state(cache, states, table, state[None])
        first += count
    if singles:
        rows, at = (torch.tensor(x, device=out.device) for x in zip(*singles, strict=True))
        table = batch.block_tables[rows]
        out[at], state = step(*(x[at] for x in given), read_state(cache, states, table))
        write_state(cache, states, table, state)
    return out


def mamba2_step(
    read: Tensor, written: Tensor, x: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of each of B rows: results [B, H, D], and states [B, H, N, D] afterwards.

    read, written: C and B, [B, H, N]; x: times the step, [B, H, D]; log_decay: [B, H].
    """
    state = state * log_decay.exp()[..., None, None] + written[..., None] * x[..., None, :]
    return torch.einsum("bhn,bhnd->bhd", read, state), state


def mamba2_chunk(
    read: Tensor, written: Tensor, x: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Some tokens of one row, one after another: results [Q, H, D], and the state [H, N, D]
    afterwards. As mamba2_step(), with Q in place of B."""
    c, b, values = (part.transpose(0, 1) for part in (read, written, x))  # [H, Q, ...]
    decayed, between = _decays(log_decay)
    out = (c * decayed.exp()[..., None]) @ state + ((c @ b.transpose(1, 2)) * between) @ values
    last = decayed[:, -1:]
    kept = b * (last - decayed).exp()[..., None]
    state = state * last.exp()[..., None] + kept.transpose(1, 2) @ values
    return out.transpose(0, 1), state


def _decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms since the chunk began, [H, Q], of log_decay [Q, H]; and what is left of each token
    at each token, [H, Q, Q], 0 for later ones."""
    decayed = log_decay.T.cumsum(dim=1)
    size = decayed.shape[1]
    later = torch.ones(size, size, dtype=torch.bool, device=decayed.device).triu(1)
    between = (decayed[:, :, None] - decayed[:, None]).masked_fill(later, float("-inf")).exp()
    return decayed, between


def delta_step(
    queries: Tensor, keys: Tensor, values: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of each of B rows: results [B, Hv, Dv], and states [B, Hv, Dk, Dv] afterwards.

    queries, keys: [B, Hv, Dk]; values: [B, Hv, Dv]; log_decay, beta: [B, Hv].
    """
    state = state * log_decay.exp()[..., None, None]
    read = torch.einsum("bhk,bhkv->bhv", keys, state)
    delta = beta[..., None] * (values - read)
    state = state + keys[..., None] * delta[..., None, :]
    return torch.einsum("bhk,bhkv->bhv", queries, state), state


def delta_chunk(
    queries: Tensor, keys: Tensor, values: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Some tokens of one row, one after another: results [Q, Hv, Dv], and the state [Hv, Dk, Dv]
    afterwards. As delta_step(), with Q in place of B."""
    q, k, v = (x.transpose(0, 1) for x in (queries, keys, values))  # [Hv, Q, D]
    decayed, between = _decays(log_decay)
    k_beta = k * beta.T[..., None]
    # What each token writes depends on what those before it wrote: a triangular system.
    system = (k_beta @ k.transpose(1, 2)) * between
    wanted = v * beta.T[..., None] - (k_beta * decayed.exp()[..., None]) @ state
    written = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    seen = (q @ k.transpose(1, 2)) * between
    out = (q * decayed.exp()[..., None]) @ state + seen @ written
    last = decayed[:, -1:]
    kept = k * (last - decayed).exp()[..., None]
    state = state * last.exp()[..., None] + kept.transpose(1, 2) @ written
    return out.transpose(0, 1), state


def read_state(cache: StateCache, arrays: StatePlaces, tables: Tensor) -> Tensor:
    """float32 [R, arrays, *shape] of rows with these tables (int32 [R, pages of a slot])."""
    views = (_run(cache, arrays.shape, run) for run in _runs(arrays))
    found = [view[tables[:, page].long()] for page, view in views]
    return torch.cat(found, dim=1)


def write_state(cache: StateCache, arrays: StatePlaces, tables: Tensor, state: Tensor) -> None:
    """The other way round."""
    first = 0
    for run in _runs(arrays):
        page, view = _run(cache, arrays.shape, run)
        view[tables[:, page].long()] = state[:, first : first + view.shape[1]]
        first += view.shape[1]


def _run(
    cache: StateCache, shape: tuple[int, ...], run: tuple[int, int, int]
) -> tuple[int, Tensor]:
    """(page, float32 [N, arrays, *shape]) of arrays that lie one behind the other."""
    page, first, count = run
    end = first + 4 * math.prod(shape) * count
    return page, cache.pages[:, first:end].view(torch.float32).unflatten(1, (count, *shape))


def _runs(arrays: StatePlaces) -> list[tuple[int, int, int]]:
    """(page, bytes from there, arrays) of those that lie one behind the other without a gap."""
    size = 4 * math.prod(arrays.shape)
    runs: list[tuple[int, int, int]] = []
    for page, offset in arrays.places:
        if runs and runs[-1][0] == page and runs[-1][1] + size * runs[-1][2] == offset:
            runs[-1] = (page, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((page, offset, 1))
    return runs


def _heads(qkv: Tensor, shape: DeltaNetShape) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, of length 1, and values for each value head: [T, Hv, Dk], [T, Hv, Dv]."""
    q, k, v = qkv.split([shape.key_size, shape.key_size, shape.value_size], dim=1)
    repeats = shape.num_value_heads // shape.num_key_heads

    def of_value_heads(x: Tensor, scale: float) -> Tensor:
        given = x.unflatten(1, (shape.num_key_heads, shape.key_dim))
        length = torch.rsqrt(given.square().sum(dim=-1, keepdim=True) + LENGTH_EPS)
        heads: Tensor = given * length * scale
        if shape.heads_in_turn:
            return heads.repeat(1, repeats, 1)
        return heads.repeat_interleave(repeats, dim=1)

    values = v.unflatten(1, (shape.num_value_heads, shape.value_dim))
    return of_value_heads(q, shape.key_dim**-0.5), of_value_heads(k, 1.0), values


def _chunks(start: int, count: int) -> list[tuple[int, int]]:
    """(first, size) of the pieces of count tokens from position start on, cut at whole chunks."""
    ends = [*range((start // CHUNK + 1) * CHUNK, start + count, CHUNK), start + count]
    firsts = [start, *ends[:-1]]
    return [(first - start, end - first) for first, end in zip(firsts, ends, strict=True)]
