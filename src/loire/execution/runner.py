"""The model runner: computes a StepPlan and knows nothing of why it looks as it does."""

import math
import time
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from loire.base.executor import ComputedStep
from loire.base.step import RowResult, StepPlan, StepResult, StepRow, TokenLogprobs
from loire.execution.constraints import ConstraintFactory
from loire.execution.inputs import group_batches, host_batch, wanted_tokens
from loire.execution.kv_cache import KVCache
from loire.execution.latest_tokens import LatestTokens
from loire.execution.penalty_table import PenaltyTable
from loire.execution.sampler import NOT_FINITE, Draw, gather_logprobs, sample
from loire.execution.sampling_state import SamplingState
from loire.execution.tables import BlockTables
from loire.execution.threads import torch_threads
from loire.kernels.interface import FlatBatch, Wanted
from loire.models.decoder import Decoder

PROMPT_LOGPROBS_CHUNK = 256
"""Positions whose logits are held at once when prompt log-probabilities are asked for."""

FEWEST_SPARED = 8
"""Tokens that must be spared their last layer for a second attention plan to be worth its time."""

NO_ANSWER = Draw(token_id=0)
"""The token of a row that is only pooled."""


class ModelRunner:
    """One model, its KV tensors, and the sampling state of the sequences in the batch."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        device: torch.device,
        constraints: ConstraintFactory,
        *,
        plans_ahead: bool = True,
    ) -> None:
        """plans_ahead: whether a step may come whose tokens the one before it has yet to give."""
        self.decoder = decoder
        self.cache = cache
        self.device = device
        self.constraints = constraints
        self._penalties = PenaltyTable(constraints.vocab_size, device)
        self._states: dict[int, SamplingState] = {}
        self._block_sizes = [group.block_size for group in cache.geometry.groups]
        self._tables = [BlockTables() for _ in self._block_sizes]
        self._last_group = cache.layers[decoder.last_cache].group
        self._latest = LatestTokens(device, is_read=plans_ahead)

    def launch(self, plan: StepPlan) -> ComputedStep:
        """One forward pass over the plan's rows, and a token for each row that samples."""
        with torch.inference_mode(), torch_threads(self.decoder.backend.torch_threads):
            return ComputedStep(self._execute(plan))

    def _execute(self, plan: StepPlan) -> StepResult:
        started = time.perf_counter()
        self._update_states(plan)
        self.cache.copy(plan.copies)
        self.cache.zero(plan.zeroed)
        seq_ids = [row.seq_id for row in plan.rows]
        tables, sizes = [tables.of(seq_ids) for tables in self._tables], self._block_sizes
        host = host_batch(plan, tables[0], sizes[0], self._latest.place)
        tokens, first = self.decoder.backend.transfers.upload(host, self._latest.tokens)
        batches = group_batches(host, first, tables[1:], sizes[1:])
        kernels = self.decoder.backend.attention
        plans = [kernels.plan(batch, size) for batch, size in zip(batches, sizes, strict=True)]
        counts, wanted = self._wanted(plan.rows, batches[self._last_group])
        hidden = self.decoder.forward(tokens, batches, plans, self.cache.layers, wanted)
        self.cache.copy(plan.snapshots)
        draws = self._sample(plan.rows, hidden, counts)
        results = []
        offset = 0
        for row, draw, count in zip(plan.rows, draws, counts, strict=True):
            results.append(self._row_result(row, draw, hidden[offset : offset + count]))
            offset += count
        return StepResult(plan.step_id, tuple(results), time.perf_counter() - started)

    def _update_states(self, plan: StepPlan) -> None:
        for seq_id in plan.ended:
            self._end(seq_id)
            self._latest.drop(seq_id)
            for tables in self._tables:
                tables.drop(seq_id)
        for new in plan.new_sequences:
            self._end(new.seq_id)
            self._states[new.seq_id] = SamplingState(new, self.constraints, self._penalties)
        for row in plan.rows:
            assert not row.num_drafts, "drafted tokens are not verified here yet"
            for update in row.tables:
                tables = self._tables[update.group]
                tables.replace(row.seq_id, update.first, update.block_ids)

    def _end(self, seq_id: int) -> None:
        state = self._states.pop(seq_id, None)
        if state is not None:
            state.end()

    def _wanted(
        self, rows: Sequence[StepRow], batch: FlatBatch
    ) -> tuple[Sequence[int], Wanted | None]:
        """Of how many tokens of each row, its last ones, hidden states are computed."""
        counts = [self._num_wanted(row) for row in rows]
        if sum(batch.host_query_lens) - sum(counts) < FEWEST_SPARED:
            return batch.host_query_lens, None
        size = self._block_sizes[self._last_group]
        return counts, wanted_tokens(batch, counts, self.decoder.backend, size)

    def _num_wanted(self, row: StepRow) -> int:
        state = self._states[row.seq_id]
        if state.wants_prompt_logprobs or state.params.pooling is not None:
            return len(row.token_ids)
        return int(row.samples)

    def _sample(self, rows: Sequence[StepRow], hidden: Tensor, counts: Sequence[int]) -> list[Draw]:
        """counts: hidden states of each row."""
        ends = [end - 1 for end in accumulate(counts)]
        draws = [NO_ANSWER if self._pools(row) else Draw() for row in rows]
        sampling = [index for index, row in enumerate(rows) if row.samples and not self._pools(row)]
        if not sampling:
            return draws
        last = hidden
        if len(sampling) < len(hidden):
            last = hidden[torch.tensor([ends[index] for index in sampling], device=self.device)]
        states = [self._states[rows[index].seq_id] for index in sampling]
        positions = [rows[index].start + len(rows[index].token_ids) for index in sampling]
        logits = self.decoder.logits(last)
        sampled = sample(logits, states, positions, self.decoder.backend, self._penalties)
        # Of a row that failed it is any token: the next step's row of it is dropped.
        self._latest.put([rows[index].seq_id for index in sampling], sampled.tokens)
        for index, state, draw in zip(sampling, states, sampled.draws(), strict=True):
            draws[index] = draw
            if draw.token_id is not None:
                state.record(draw.token_id)
        self.constraints.advance()
        return draws

    def _pools(self, row: StepRow) -> bool:
        return self._states[row.seq_id].params.pooling is not None

    def _row_result(self, row: StepRow, draw: Draw, hidden: Tensor) -> RowResult:
        state = self._states[row.seq_id]
        error = draw.error
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if state.wants_prompt_logprobs and error is None:
            prompt_logprobs = self._prompt_logprobs(row, state, hidden)
            if not all(math.isfinite(entry.logprobs[0]) for entry in prompt_logprobs):
                error, prompt_logprobs = NOT_FINITE, ()
        pooled: tuple[float, ...] | None = None
        if state.params.pooling is not None:
            state.pool(hidden)
            pooled = state.pooled() if row.samples else None
            if pooled is not None and not all(map(math.isfinite, pooled)):
                error, pooled = NOT_FINITE, None
        return RowResult(
            seq_id=row.seq_id,
            epoch=row.epoch,
            token_ids=(draw.token_id,) if row.samples and draw.token_id is not None else (),
            logprobs=() if draw.logprobs is None else (draw.logprobs,),
            prompt_logprobs=prompt_logprobs,
            pooled=pooled,
            error=error,
        )

    def _prompt_logprobs(
        self, row: StepRow, state: SamplingState, hidden: Tensor
    ) -> tuple[TokenLogprobs, ...]:
        targets = state.prompt_token_ids[row.start + 1 : row.start + 1 + len(row.token_ids)]
        num_top = state.params.prompt_logprobs
        assert num_top is not None
        entries: list[TokenLogprobs] = []
        for first in range(0, len(targets), PROMPT_LOGPROBS_CHUNK):
            chunk = targets[first : first + PROMPT_LOGPROBS_CHUNK]
            logits = self.decoder.logits(hidden[first : first + len(chunk)])
            ids = torch.tensor(chunk, dtype=torch.int64, device=self.device)
            entries += gather_logprobs(torch.log_softmax(logits, dim=1), ids, num_top)
        return tuple(entries)
