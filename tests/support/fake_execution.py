"""An executor without a model: its KV memory remembers what was written where.

The KV of a position is a hash of the whole history up to it, kept with the hash before it. A row
therefore notices any block that was never written, was overwritten, or belongs to other tokens,
and its next token is a pure function of its history: `expected_tokens` needs no engine.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loire.base.executor import ComputedStep
from loire.base.messages import EngineRequest
from loire.base.step import (
    PENDING_TOKEN,
    NewSequence,
    RowResult,
    StepPlan,
    StepResult,
    StepRow,
    TokenLogprobs,
)

POISON = 13
"""A token after which the model gives nothing but NaN."""
VOCAB = 64


@dataclass(frozen=True)
class Cell:
    """KV of one position."""

    history: bytes
    before: bytes


def extend(history: bytes, token: int) -> bytes:
    """The history with one more token."""
    return hashlib.blake2b(history + token.to_bytes(4, "little"), digest_size=16).digest()


def next_token(history: bytes, seed: int, choice: int) -> int:
    """What the model says after a history; never POISON."""
    data = history + seed.to_bytes(8, "little") + choice.to_bytes(4, "little")
    token = hashlib.blake2b(data, digest_size=4).digest()[0] % VOCAB
    return token + 1 if token == POISON else token


def expected_tokens(
    request: EngineRequest, choice: int, max_model_len: int, bug: int | None = None
) -> tuple[list[int], str]:
    """(tokens, finish reason) of one choice of a request that is computed by itself.

    bug: a token that cannot be computed.
    """
    history = b""
    for token in request.prompt_token_ids:
        history = extend(history, token)
    if POISON in request.prompt_token_ids or bug in request.prompt_token_ids:
        return [], "error"
    tokens: list[int] = []
    most = max_model_len - len(request.prompt_token_ids)
    if request.params.max_tokens is not None:
        most = min(most, request.params.max_tokens)
    while True:
        token = next_token(history, request.seed, choice)
        tokens.append(token)
        history = extend(history, token)
        if token in request.stop_token_ids and len(tokens) > request.params.min_tokens:
            return tokens, "stop"
        if len(tokens) >= most:
            return tokens, "length"
        if token == bug:
            return tokens, "error"


Fails = Callable[[StepPlan, bool], None]
"""Called before (False) and after (True) a step has done all its work, to raise what it likes."""


class FakeExecutor:
    """See loire.base.executor. Raises AssertionError where KV memory is misused."""

    def __init__(self, num_blocks: int, block_size: int, fails: Fails | None = None) -> None:
        self.fails = fails
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.plans: list[StepPlan] = []
        self.computed: set[int] = set()
        """Tokens of the latest step."""
        self._memory: dict[tuple[int, int], Cell] = {}
        self._sequences: dict[int, NewSequence] = {}
        self._tables: dict[int, list[int]] = {}
        self._last: dict[int, int] = {}
        self._poisoned: set[bytes] = set()

    @property
    def num_computed_tokens(self) -> int:
        """Tokens of all steps so far."""
        return sum(plan.num_tokens for plan in self.plans)

    def launch(self, plan: StepPlan) -> ComputedStep:
        """One step."""
        self.plans.append(plan)
        if self.fails is not None:
            self.fails(plan, False)
        for seq_id in plan.ended:
            self._sequences.pop(seq_id, None)
            self._tables.pop(seq_id, None)
        for new in plan.new_sequences:
            self._sequences[new.seq_id] = new
            self._tables[new.seq_id] = []
        for row in plan.rows:
            for update in row.tables:
                table = self._tables[row.seq_id]
                assert update.first <= len(table), "blocks of a table are left out"
                table[update.first :] = update.block_ids
        self._copy(plan)
        histories = self._write(plan.rows)
        results = []
        for row, written in zip(plan.rows, histories, strict=True):
            self._check_context(row)
            results.append(self._result(row, written))
        if self.fails is not None:
            self.fails(plan, True)
        return ComputedStep(StepResult(plan.step_id, tuple(results), 0.0))

    def _copy(self, plan: StepPlan) -> None:
        copied = {
            (target, offset): self._memory.get((source, offset))
            for source, target in plan.block_copies
            for offset in range(self.block_size)
        }
        for place, cell in copied.items():
            if cell is None:
                self._memory.pop(place, None)
            else:
                self._memory[place] = cell

    def _place(self, row: StepRow, position: int) -> tuple[int, int]:
        block = self._tables[row.seq_id][position // self.block_size]
        assert 0 <= block < self.num_blocks
        return block, position % self.block_size

    def _write(self, rows: Sequence[StepRow]) -> list[list[bytes]]:
        """All KV of the step is written before anything is read, as the kernels do per layer."""
        written_at: set[tuple[int, int]] = set()
        histories: list[list[bytes]] = []
        self.computed.clear()
        for row in rows:
            assert row.seq_id in self._sequences, "a row of a sequence nobody announced"
            history = b""
            if row.start:
                cell = self._memory.get(self._place(row, row.start - 1))
                assert cell is not None, f"position {row.start - 1} was never written"
                history = cell.history
            mine: list[bytes] = []
            for index, given in enumerate(row.token_ids):
                token = self._last.get(row.seq_id, 0) if given == PENDING_TOKEN else given
                self.computed.add(token)
                place = self._place(row, row.start + index)
                assert place not in written_at, f"two rows write {place}"
                written_at.add(place)
                before, history = history, extend(history, token)
                if token == POISON or before in self._poisoned:
                    self._poisoned.add(history)
                self._memory[place] = Cell(history, before)
                mine.append(history)
            histories.append(mine)
        return histories

    def _check_context(self, row: StepRow) -> None:
        before = b""
        for position in range(row.start + len(row.token_ids)):
            cell = self._memory.get(self._place(row, position))
            assert cell is not None, f"position {position} was never written"
            assert cell.before == before, f"position {position} holds the KV of other tokens"
            before = cell.history

    def _result(self, row: StepRow, written: Sequence[bytes]) -> RowResult:
        state = self._sequences[row.seq_id]
        newest = len(written) - 1 - row.num_drafts
        tokens: list[int] = []
        if row.samples:
            tokens.append(next_token(written[newest], state.seed, state.choice))
            for index in range(newest + 1, len(written)):
                if row.token_ids[index] != tokens[-1]:
                    break
                tokens.append(next_token(written[index], state.seed, state.choice))
            self._last[row.seq_id] = tokens[-1]
        num_valid = newest + max(len(tokens), 1)
        if any(history in self._poisoned for history in written[:num_valid]):
            return RowResult(row.seq_id, row.epoch, error="logits are not finite")
        logprobs: tuple[TokenLogprobs, ...] = ()
        if state.params.prompt_logprobs is not None and state.choice == 0:
            targets = state.prompt_token_ids[row.start + 1 : row.start + 1 + len(row.token_ids)]
            logprobs = tuple(TokenLogprobs((target,), (-1.0,), 1) for target in targets)
        return RowResult(row.seq_id, row.epoch, tuple(tokens), prompt_logprobs=logprobs)
