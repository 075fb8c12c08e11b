"""The model runner: computes a StepPlan and knows nothing of why it looks as it does."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from loire.base.errors import EngineError
from loire.base.step import RowResult, StepPlan, StepResult, StepRow, TokenLogprobs
from loire.execution.adapters import AdapterShelf
from loire.execution.constraints import ConstraintFactory
from loire.execution.forward import ForwardPass, OtherRanks, StepInputs
from loire.execution.hidden_states import HiddenStates
from loire.execution.inputs import host_batch
from loire.execution.kv_cache import KVCache
from loire.execution.latest_tokens import LatestTokens
from loire.execution.penalty_table import PenaltyTable
from loire.execution.sampler import NOT_FINITE, gather_logprobs
from loire.execution.sampling_state import SamplingState
from loire.execution.tables import BlockTables
from loire.execution.threads import torch_threads
from loire.execution.token_choice import RowTokens, SamplingRow, TokenChooser
from loire.kernels.interface import HostBatch
from loire.models.decoder import Decoder

log = logging.getLogger("loire.engine")

PROMPT_LOGPROBS_CHUNK = 256
"""Positions whose logits are held at once when prompt log-probabilities are asked for."""

FEWEST_SPARED = 8
"""Tokens that must be spared their last layer for a second attention plan to be worth its time."""

NO_TOKEN = RowTokens()
"""Of a row that does not reach its end."""

NO_ANSWER = RowTokens(token_ids=(0,))
"""Of a row that is only pooled."""


class LaunchedStep:
    """A step whose work is queued where the model computes: see loire.base.executor.PendingStep."""

    def __init__(self, finish: Callable[[], StepResult]) -> None:
        self._finish: Callable[[], StepResult] | None = finish
        self._result: StepResult | None = None

    def result(self) -> StepResult:
        """What it gave; waits for it."""
        if self._finish is not None:
            self._result = self._finish()
            self._finish = None
        assert self._result is not None, "a step that has finished has a result"
        return self._result


@dataclass(slots=True, eq=False)
class _RowOutput:
    """What a row will have given, when the step is over."""

    row: StepRow
    sampling: SamplingRow | None
    otherwise: RowTokens
    """Of a row that does not sample."""
    prompt_logprobs: Callable[[], tuple[TokenLogprobs, ...]] | None
    pooled: Callable[[], tuple[float, ...]] | None
    error: str | None
    """Why it was computed for nothing."""

    def result(self) -> RowResult:
        """After its draws are there."""
        outcome = self.otherwise if self.sampling is None else self.sampling.outcome()
        error = self.error or outcome.error
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if self.prompt_logprobs is not None and error is None:
            prompt_logprobs = self.prompt_logprobs()
            if not all(math.isfinite(entry.logprobs[0]) for entry in prompt_logprobs):
                error, prompt_logprobs = NOT_FINITE, ()
        pooled = None if self.pooled is None else self.pooled()
        if pooled is not None and not all(map(math.isfinite, pooled)):
            error, pooled = error or NOT_FINITE, None
        return RowResult(
            seq_id=self.row.seq_id,
            epoch=self.row.epoch,
            token_ids=outcome.token_ids,
            logprobs=outcome.logprobs,
            prompt_logprobs=prompt_logprobs,
            pooled=pooled,
            error=error,
        )


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
        adapters: AdapterShelf | None = None,
        other_ranks: OtherRanks | None = None,
    ) -> None:
        """plans_ahead: whether a step may come whose tokens the one before it has yet to give.

        other_ranks: those that have the rest of the model."""
        self.decoder = decoder
        self.cache = cache
        self.device = device
        self.constraints = constraints
        self.adapters = adapters
        self._adapter_of: dict[int, tuple[str, int]] = {}
        """Content and number of the adapter of each sequence that has one."""
        self._without: dict[int, str] = {}
        """Why a sequence does not have the adapter that it is for."""
        self._penalties = PenaltyTable(constraints.vocab_size, device)
        self._states: dict[int, SamplingState] = {}
        self._forward_pass = ForwardPass(decoder, cache, other_ranks)
        self._tables = [BlockTables() for _ in cache.geometry.groups]
        self._latest = LatestTokens(device, is_read=plans_ahead)
        self._chooser = TokenChooser(decoder.backend, constraints, self._penalties, self._latest)

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """One forward pass over the plan's rows, and tokens for each row that samples.

        Its results are read when they are asked for; what it computes may still go on then.
        """
        started = time.perf_counter()
        with torch.inference_mode(), torch_threads(self.decoder.backend.torch_threads):
            self._update_states(plan)
            hidden = self._forward(plan)
            sampling = {
                index: SamplingRow(row, self._states[row.seq_id], hidden.ends[index])
                for index, row in enumerate(plan.rows)
                if row.samples and not self._pools(row)
            }
            choose = self._chooser.choose(tuple(sampling.values()), hidden)
            rows = [
                self._row_output(row, sampling.get(index), hidden, index)
                for index, row in enumerate(plan.rows)
            ]

        def finish() -> StepResult:
            choose()
            results = tuple(row.result() for row in rows)
            return StepResult(plan.step_id, results, time.perf_counter() - started)

        step = LaunchedStep(finish)
        for row in sampling.values():
            if row.state.records:
                row.state.sampled_in = step
        return step

    def _forward(self, plan: StepPlan) -> HiddenStates:
        latest, forward = self._latest, self._forward_pass
        seq_ids = [row.seq_id for row in plan.rows]
        tables = [tables.of(seq_ids) for tables in self._tables]
        host = host_batch(plan, tables[0], forward.block_sizes[0], latest.place)
        if self._adapter_of:
            host = replace(host, adapters=self._adapter_numbers(seq_ids, host))
        counts = [self._num_wanted(row) for row in plan.rows]
        wanted: Sequence[int] | None = counts
        if len(host.token_ids) - sum(counts) < FEWEST_SPARED:
            counts, wanted = [len(row.token_ids) for row in plan.rows], None
        inputs = StepInputs(host, tables, wanted, plan.copies, plan.zeroed, plan.snapshots)
        hidden, known = forward(inputs, latest.tokens)
        return HiddenStates(forward.logits, hidden, known, counts, latest.tokens)

    def _update_states(self, plan: StepPlan) -> None:
        for seq_id in plan.ended:
            self._end(seq_id)
            self._latest.drop(seq_id)
            for tables in self._tables:
                tables.drop(seq_id)
        for new in plan.new_sequences:
            self._end(new.seq_id)
            if new.adapter:
                self._take_adapter(new.seq_id, new.adapter)
            self._states[new.seq_id] = SamplingState(new, self.constraints, self._penalties)
        if self.adapters is not None:
            self.adapters.settle()
        for row in plan.rows:
            for update in row.tables:
                tables = self._tables[update.group]
                tables.replace(row.seq_id, update.first, update.block_ids)

    def _take_adapter(self, seq_id: int, adapter: str) -> None:
        """Nobody else's step fails because the files of an adapter are gone."""
        assert self.adapters is not None, "a sequence has an adapter, but there are none"
        try:
            self._adapter_of[seq_id] = adapter, self.adapters.take(adapter)
        except EngineError as error:
            log.warning("%s", error)
            self._without[seq_id] = str(error)

    def _end(self, seq_id: int) -> None:
        state = self._states.pop(seq_id, None)
        if state is not None:
            state.end()
        self._without.pop(seq_id, None)
        adapter = self._adapter_of.pop(seq_id, None)
        if adapter is not None and self.adapters is not None:
            self.adapters.give_back(adapter[0])

    def _adapter_numbers(self, seq_ids: Sequence[int], host: HostBatch) -> NDArray[np.int32] | None:
        """int32 [T]: of each token, -1 for none; None where no row has an adapter."""
        numbers = [self._adapter_of.get(seq_id, ("", -1))[1] for seq_id in seq_ids]
        if max(numbers) < 0:
            return None
        return np.repeat(np.array(numbers, dtype=np.int32), host.query_lens)

    def _num_wanted(self, row: StepRow) -> int:
        state = self._states[row.seq_id]
        if state.wants_prompt_logprobs or state.params.pooling is not None:
            return len(row.token_ids)
        return row.samples + row.num_drafts

    def _pools(self, row: StepRow) -> bool:
        return self._states[row.seq_id].params.pooling is not None

    def _row_output(
        self, row: StepRow, sampling: SamplingRow | None, hidden: HiddenStates, index: int
    ) -> _RowOutput:
        state = self._states[row.seq_id]
        prompt_logprobs = pooled = None
        if state.wants_prompt_logprobs:
            prompt_logprobs = self._prompt_logprobs(row, state, hidden, index)
        if state.params.pooling is not None:
            state.pool(hidden.of_row(index))
            if row.samples:
                pooled = state.pooled(self.decoder.backend.transfers)
        otherwise = NO_ANSWER if row.samples else NO_TOKEN
        error = self._without.get(row.seq_id)
        return _RowOutput(row, sampling, otherwise, prompt_logprobs, pooled, error)

    def _prompt_logprobs(
        self, row: StepRow, state: SamplingState, hidden: HiddenStates, index: int
    ) -> Callable[[], tuple[TokenLogprobs, ...]]:
        targets = state.prompt_token_ids[row.start + 1 : row.start + 1 + len(row.token_ids)]
        num_top = state.params.prompt_logprobs
        assert num_top is not None
        start = hidden.ends[index] - len(row.token_ids)
        chunks = []
        for first in range(0, len(targets), PROMPT_LOGPROBS_CHUNK):
            chunk = targets[first : first + PROMPT_LOGPROBS_CHUNK]
            logits = hidden.logits(range(start + first, start + first + len(chunk)))
            ids = torch.tensor(chunk, dtype=torch.int64, device=self.device)
            logprobs = torch.log_softmax(logits, dim=1)
            chunks.append(gather_logprobs(logprobs, ids, num_top, self.decoder.backend.transfers))
        return lambda: tuple(entry for chunk in chunks for entry in chunk())
