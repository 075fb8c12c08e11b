"""From the hidden states of a step to the tokens of its rows, drafted ones judged.

A drafted token stands if it is what is sampled at its position, and so do those after it: the
random number of a position does not depend on the draft, so that the tokens are the same ones as
without drafts (Leviathan et al. 2023, with draws that are given instead of made).

Where logits depend on the tokens before by nothing but the model, the row is sampled at all its
positions at once. With penalties or a constraint it is done position by position, as far as the
drafts hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from loire.base.step import StepRow, TokenLogprobs
from loire.execution.constraints import ConstraintFactory
from loire.execution.hidden_states import HiddenStates
from loire.execution.latest_tokens import LatestTokens
from loire.execution.penalty_table import PenaltyTable
from loire.execution.sampler import Draw, Sampled, sample
from loire.execution.sampling_state import SamplingState
from loire.kernels.interface import Backend


class RowTokens(NamedTuple):
    """The tokens of a row, or the error that ends its request."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None


class SamplingRow:
    """A row that samples, and what was drawn behind its newest token and each drafted one."""

    __slots__ = ("_num_recorded", "drafts", "draws", "position", "seq_id", "state", "token")

    def __init__(self, row: StepRow, state: SamplingState, end: int) -> None:
        """end: of the row, among the hidden states."""
        self.seq_id = row.seq_id
        self.state = state
        num_known = len(row.token_ids) - row.num_drafts
        self.drafts = row.token_ids[num_known:]
        self.token = end - row.num_drafts - 1
        """The newest known one, among the hidden states."""
        self.position = row.start + num_known
        """Of the token that is sampled behind it."""
        self.draws: list[Draw] = []
        self._num_recorded = 0

    @property
    def accepted(self) -> list[Draw]:
        """The draws that hold: up to the first that is not what was drafted.

        One that failed behind others is left to the next step, which begins there.
        """
        held: list[Draw] = []
        for draw in self.draws:
            if draw.error is not None:
                break
            held.append(draw)
            if self.drafts[len(held) - 1 : len(held)] != (draw.token_id,):
                break
        return held

    @property
    def goes_on(self) -> bool:
        """Whether all draws were what was drafted, and the one behind them is missing."""
        drawn = tuple(draw.token_id for draw in self.draws)
        return len(drawn) <= len(self.drafts) and drawn == self.drafts[: len(drawn)]

    def record(self) -> None:
        """Tell the sampling state the tokens that it has not heard of."""
        for draw in self.accepted[self._num_recorded :]:
            assert draw.token_id is not None, "draws that hold have tokens"
            self.state.record(draw.token_id)
            self._num_recorded += 1

    def outcome(self) -> RowTokens:
        """What the row came to, when it is known."""
        held = self.accepted if self.drafts else self.draws
        if not held or held[0].error is not None:
            return RowTokens(error=self.draws[0].error)
        return RowTokens(
            tuple([draw.token_id for draw in held if draw.token_id is not None]),
            tuple([draw.logprobs for draw in held if draw.logprobs is not None]),
        )


@dataclass(frozen=True, slots=True)
class TokenChooser:
    """Samples for all rows of a step."""

    backend: Backend
    constraints: ConstraintFactory
    penalties: PenaltyTable
    latest: LatestTokens

    def choose(self, rows: Sequence[SamplingRow], hidden: HiddenStates) -> Callable[[], None]:
        """Begin to sample; the function waits for it, and all rows have their draws then. To be
        called once.

        Waits itself for steps before this one, where constraints must hear of their tokens, and
        where drafts are judged position by position.
        """
        if not rows:
            return lambda: None
        for row in rows:
            row.state.settle()
        places = [
            (row, place)
            for row in rows
            for place in range(1 if row.state.looks_back else 1 + len(row.drafts))
        ]
        sampled = self._sample(places, hidden)
        self._keep(places, sampled)
        step_by_step = [row for row in rows if row.drafts and row.state.looks_back]
        if step_by_step:
            _take(places, sampled)
            self._judge(step_by_step, hidden)

        def finish() -> None:
            if not step_by_step:
                _take(places, sampled)
            for row in rows:
                if row.state.records:
                    row.record()
            self.constraints.advance()

        return finish

    def _judge(self, rows: Sequence[SamplingRow], hidden: HiddenStates) -> None:
        """Draw on, as long as what is drawn is what was drafted."""
        while rows := [row for row in rows if row.goes_on]:
            for row in rows:
                row.record()
            places = [(row, len(row.draws)) for row in rows]
            _take(places, self._sample(places, hidden))

    def _sample(self, places: Sequence[tuple[SamplingRow, int]], hidden: HiddenStates) -> Sampled:
        logits = hidden.logits([row.token + place for row, place in places])
        states = [row.state for row, _ in places]
        positions = [row.position + place for row, place in places]
        return sample(logits, states, positions, self.backend, self.penalties)

    def _keep(self, places: Sequence[tuple[SamplingRow, int]], sampled: Sampled) -> None:
        """Keep the tokens that the next step may take before it is known what they are. Of a row
        that failed it is any: the next step's row of it is dropped. Behind drafts nothing waits."""
        if not self.latest.is_read:
            return  # (a tenth of a millisecond in caches that the weights emptied)
        kept = [index for index, (row, _) in enumerate(places) if not row.drafts]
        tokens = sampled.tokens
        if len(kept) < len(tokens):
            tokens = tokens[torch.tensor(kept, dtype=torch.int64, device=tokens.device)]
        if kept:
            self.latest.put([places[index][0].seq_id for index in kept], tokens)


def _take(places: Sequence[tuple[SamplingRow, int]], sampled: Sampled) -> None:
    for (row, _), draw in zip(places, sampled.draws(), strict=True):
        row.draws.append(draw)
