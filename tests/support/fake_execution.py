"""An executor without a model: its KV memory remembers what was written where.

The KV of a position is a hash of the whole history up to it, kept with the hash before it. A row
therefore notices any block that was never written, was overwritten, or belongs to other tokens,
and its next token is a pure function of its history: `expected_tokens` needs no engine. A recurrent
state is the hash of all tokens fed to it: it shows any that was fed twice, or left out.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loire.base.cache_geometry import CacheGeometry
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


@dataclass(frozen=True)
class State:
    """One page of a recurrent state."""

    history: bytes
    """Of all tokens that were fed to it, each once."""
    page: int


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


class Misuse(BaseException):
    """KV memory is misused. No engine may take it for the fault of a request."""


class FakeExecutor:
    """See loire.base.executor. Raises Misuse."""

    def __init__(self, num_pages: int, geometry: CacheGeometry, fails: Fails | None = None) -> None:
        self.fails = fails
        self.num_pages = num_pages
        self.geometry = geometry
        self.plans: list[StepPlan] = []
        self.computed: set[int] = set()
        """Tokens of the latest step."""
        self._memory: dict[int, dict[int, Cell | State]] = defaultdict(dict)
        """By page, and by offset in it. Pages of all groups are the same memory."""
        self._sequences: dict[int, NewSequence] = {}
        self._tables: dict[int, list[list[int]]] = {}
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
        try:
            result = self._compute(plan)
        except AssertionError as error:
            raise Misuse(str(error)) from error
        if self.fails is not None:
            self.fails(plan, True)
        return ComputedStep(result)

    def _compute(self, plan: StepPlan) -> StepResult:
        self._take_news(plan)
        self._copy(plan.copies)
        for page in plan.zeroed:
            self._memory[page] = {0: State(b"", -1)}
        self.computed.clear()
        histories = [self._history(row) for row in plan.rows]
        self._write(plan.rows, histories)
        results = []
        for row, written in zip(plan.rows, histories, strict=True):
            self._check_context(row)
            results.append(self._result(row, written))
        self._copy(plan.snapshots)
        return StepResult(plan.step_id, tuple(results), 0.0)

    def _take_news(self, plan: StepPlan) -> None:
        for seq_id in plan.ended:
            self._sequences.pop(seq_id, None)
            self._tables.pop(seq_id, None)
        for new in plan.new_sequences:
            self._sequences[new.seq_id] = new
            self._tables[new.seq_id] = [[] for _ in self.geometry.groups]
        for row in plan.rows:
            assert row.seq_id in self._sequences, "a row of a sequence nobody announced"
            for update in row.tables:
                table = self._tables[row.seq_id][update.group]
                assert update.first <= len(table), "blocks of a table are left out"
                table[update.first :] = update.block_ids
                assert all(0 <= block < self.num_pages for block in update.block_ids)

    def _copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """All are read before any is written."""
        contents = [(target, dict(self._memory[source])) for source, target in copies]
        assert len({target for target, _ in contents}) == len(contents), "two copies to one page"
        self._memory.update(contents)

    def _cell(self, row: StepRow, group: int, position: int) -> Cell:
        page, offset = self._place(row, group, position)
        cell = self._memory[page].get(offset)
        assert isinstance(cell, Cell), f"position {position} was never written in group {group}"
        return cell

    def _place(self, row: StepRow, group: int, position: int) -> tuple[int, int]:
        size = self.geometry.groups[group].block_size
        return self._tables[row.seq_id][group][position // size], position % size

    def _history(self, row: StepRow) -> list[bytes]:
        """After each of the row's tokens, going on from what is in memory."""
        before = self._before(row)
        histories = []
        for given in row.token_ids:
            token = self._last.get(row.seq_id, 0) if given == PENDING_TOKEN else given
            history = extend(before, token)
            if token == POISON or before in self._poisoned:
                self._poisoned.add(history)
            histories.append(history)
            before = history
            self.computed.add(token)
        return histories

    def _before(self, row: StepRow) -> bytes:
        """The history up to the row, which all groups must have."""
        found = set()
        for index, group in enumerate(self.geometry.groups):
            if group.kind == "state":
                for number, page in enumerate(self._tables[row.seq_id][index]):
                    state = self._memory[page].get(0)
                    assert isinstance(state, State), "the state was overwritten"
                    assert state.page in (number, -1), "pages of the state are mixed up"
                    found.add(state.history)
            elif row.start:
                found.add(self._cell(row, index, row.start - 1).history)
            else:
                found.add(b"")
        assert len(found) == 1, (
            f"histories differ: {row} {self._tables[row.seq_id]} {self.geometry.groups}"
        )
        return found.pop()

    def _write(self, rows: Sequence[StepRow], histories: Sequence[Sequence[bytes]]) -> None:
        """All KV of the step is written before anything is read, as the kernels do per layer."""
        written: set[tuple[int, int]] = set()
        for row, mine in zip(rows, histories, strict=True):
            befores = [self._before(row), *mine]
            cells = [Cell(*pair) for pair in zip(mine, befores, strict=False)]
            for index, group in enumerate(self.geometry.groups):
                if group.kind == "state":
                    places = [(page, 0) for page in self._tables[row.seq_id][index]]
                    contents: list[Cell | State] = [
                        State(mine[-1], number) for number in range(len(places))
                    ]
                else:
                    positions = range(row.start, row.start + len(mine))
                    places = [self._place(row, index, position) for position in positions]
                    contents = list(cells)
                for (page, offset), content in zip(places, contents, strict=True):
                    assert (page, offset) not in written, f"two rows write {page}, {offset}"
                    written.add((page, offset))
                    self._memory[page][offset] = content

    def _check_context(self, row: StepRow) -> None:
        end = row.start + len(row.token_ids)
        for index, group in enumerate(self.geometry.groups):
            if group.kind == "state":
                continue
            first = 0 if group.window is None else max(row.start - group.window + 1, 0)
            before = self._cell(row, index, first).before
            assert first or not before, "position 0 holds the KV of other tokens"
            for position in range(first, end):
                cell = self._cell(row, index, position)
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
