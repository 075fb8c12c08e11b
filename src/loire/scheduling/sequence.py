"""The state of a request and of its sequences, as the scheduler sees it.

    WAITING -> RUNNING -> ENDED        RUNNING -> WAITING when preempted

A request with n > 1 starts as one sequence; its siblings are born when the prompt is computed.
"""

from dataclasses import dataclass, field
from enum import Enum

from loire.base.messages import EngineRequest
from loire.base.outputs import FinishReason
from loire.base.step import PENDING_TOKEN, NewSequence, StepRow, TokenLogprobs
from loire.memory.block_table import BlockTable
from loire.memory.hashing import root_hash


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Sequence:
    """One of the n completions of a request.

    Attributes:
        tokens: known tokens: the prompt, then the output.
        num_computed: leading tokens whose KV is valid, by results that came back.
        num_in_flight: tokens after those that are in steps whose results have not come back.
        num_pending: sampled tokens among those results: not known yet, but certain to come.
        drafts: tokens that may come after the known ones; computed with the newest, then judged.
        num_drafts_in_flight: drafted tokens among those in flight.
        epoch: how often it was preempted; results of an earlier epoch are dropped.
        turn: its number among all sequences by when they first ran; it keeps that place.
        last_served: number of its last turn, among those of all sequences.
        slot: the row it occupies in pictures of the batch.
    """

    seq_id: int
    request: "Request"
    choice: int
    tokens: list[int]
    max_tokens: int
    """Most known tokens it may reach: prompt + max_tokens, within the window."""
    table: BlockTable
    parent: "Sequence | None" = None
    """Sibling that computed the prompt; its blocks are shared while it runs."""
    status: Status = Status.WAITING
    num_computed: int = 0
    num_in_flight: int = 0
    num_pending: int = 0
    drafts: tuple[int, ...] = ()
    num_drafts_in_flight: int = 0
    epoch: int = 0
    turn: int | None = None
    last_served: int = -1
    slot: int = -1
    num_prompt_logprobs: int = 0
    """Prompt positions whose log-probabilities have been delivered."""
    announced: bool = False
    """Whether execution knows its sampling state."""

    priority: int = field(init=False)
    """Of its request: lower is earlier."""
    is_background: bool = field(init=False)
    """Whether it is to fill only what others leave idle."""

    def __post_init__(self) -> None:
        self.priority = self.request.message.priority
        self.is_background = self.priority > 0

    @property
    def tenant(self) -> str:
        """On whose behalf it is computed."""
        return self.request.message.tenant

    @property
    def num_own_pages(self) -> int:
        """Pages that it holds and took itself."""
        return self.table.num_own

    @property
    def order(self) -> tuple[int, bool, int, int]:
        """The more urgent first, then those that ran earlier, earlier requests, earlier choices."""
        has_run = self.turn is not None
        place = self.request.arrival if self.turn is None else self.turn
        return (self.priority, not has_run, place, self.choice)

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.message.prompt_token_ids)

    @property
    def num_output(self) -> int:
        """Known tokens of the output."""
        return len(self.tokens) - self.num_prompt

    @property
    def has_generated(self) -> bool:
        """Whether it has a token of its own, or will have one without another step."""
        return self.num_output > 0 or self.num_pending > 0

    @property
    def start(self) -> int:
        """Position of the next token to be scheduled."""
        return self.num_computed + self.num_in_flight

    @property
    def num_to_compute(self) -> int:
        """Tokens that could be scheduled now, those still pending and drafted ones included."""
        if self.num_drafts_in_flight:
            return 0  # how many of them are accepted, and so where it goes on, is not known yet
        if self.num_pending and len(self.tokens) + self.num_pending >= self.max_tokens:
            return 0  # it ends with the token that is on its way
        return len(self.tokens) + self.num_pending - self.start + len(self.drafts)

    @property
    def most_drafts(self) -> int:
        """Tokens that may be drafted now: the one sampled after them must be within its limit."""
        if self.num_in_flight or self.num_computed + 1 != len(self.tokens):
            return 0
        return self.max_tokens - len(self.tokens) - 1

    def num_drafts_until(self, end: int) -> int:
        """Drafted tokens among those before position end."""
        return max(end - len(self.tokens) - self.num_pending, 0)

    def take_row(self, num_tokens: int) -> StepRow:
        """Its share of a step: the next num_tokens tokens, which are in flight from now on."""
        start, end = self.start, self.start + num_tokens
        num_drafts = self.num_drafts_until(end)
        token_ids = self.tokens[start:end]
        token_ids += [PENDING_TOKEN] * (num_tokens - num_drafts - len(token_ids))
        row = StepRow(
            seq_id=self.seq_id,
            token_ids=(*token_ids, *self.drafts[:num_drafts]),
            start=start,
            tables=self.table.news(),
            samples=end >= len(self.tokens) + self.num_pending,
            num_drafts=num_drafts,
            epoch=self.epoch,
        )
        self.drafts = ()
        self.num_drafts_in_flight += num_drafts
        self.num_in_flight += num_tokens
        self.num_pending += row.samples
        return row

    def take_result(self, row: StepRow, token_ids: tuple[int, ...]) -> int:
        """Take in what a row of it gave; how many of its drafted tokens were not accepted."""
        self.num_in_flight -= len(row.token_ids)
        self.num_drafts_in_flight -= row.num_drafts
        self.num_pending -= row.samples
        num_rejected = row.num_drafts - len(token_ids) + 1 if row.num_drafts else 0
        self.num_computed += len(row.token_ids) - num_rejected
        return num_rejected

    def set_back(self) -> None:
        """It has lost its memory and what is in flight: all its tokens are to be computed again."""
        self.status = Status.WAITING
        self.num_computed = self.num_in_flight = self.num_pending = 0
        self.num_drafts_in_flight = 0
        self.drafts = ()
        self.epoch += 1

    def sampling_state(self) -> NewSequence:
        """What execution must know of it to sample its tokens."""
        message = self.request.message
        return NewSequence(
            seq_id=self.seq_id,
            params=message.params,
            seed=message.seed,
            choice=self.choice,
            prompt_token_ids=message.prompt_token_ids,
            output_token_ids=tuple(self.tokens[self.num_prompt :]),
            stop_token_ids=message.stop_token_ids,
            adapter=message.adapter,
        )

    def take_prompt_logprobs(
        self, start: int, logprobs: tuple[TokenLogprobs, ...]
    ) -> tuple[TokenLogprobs, ...]:
        """Those of a row from position start on that were not delivered yet: after a preemption
        the prompt is computed once more."""
        new = logprobs[max(self.num_prompt_logprobs - start, 0) :]
        self.num_prompt_logprobs += len(new)
        return new

    def finish(self) -> tuple[FinishReason | None, int | None]:
        """Whether, and why, it ends with its newest token; the token, if the request named it."""
        message, token = self.request.message, self.tokens[-1]
        if token in message.stop_token_ids and self.num_output > message.params.min_tokens:
            return "stop", token if token in message.params.stop_token_ids else None
        if len(self.tokens) >= self.max_tokens:
            return "length", None
        return None, None


@dataclass(slots=True, eq=False)
class Request:
    """A request and its sequences; it has ended when all of them have."""

    message: EngineRequest
    arrival: int
    sequences: list[Sequence] = field(default_factory=list)
    num_unborn: int = 0
    """Siblings that wait for the prompt to be computed."""
    num_cached_tokens: int | None = None
    """Prompt tokens found in the cache when it was first admitted."""
    first_scheduled_s: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return not self.num_unborn and all(s.status is Status.ENDED for s in self.sequences)

    def new_sequence(
        self,
        seq_id: int,
        choice: int,
        max_model_len: int,
        parent: Sequence | None = None,
        computed_by: str = "",
    ) -> Sequence:
        """Add the sequence of one choice, with the tokens it was resumed with, if any.

        computed_by: see EngineConfig.
        """
        message = self.message
        outputs = message.output_token_ids
        resumed = outputs[choice] if choice < len(outputs) else ()
        num_prompt = len(message.prompt_token_ids)
        limit = message.params.max_tokens
        has_siblings = message.params.n > 1 and not outputs and choice == 0
        table = BlockTable(
            root=root_hash(message.cache_salt, message.adapter, computed_by),
            priority=message.priority,
            reads_cache=choice > 0 or not message.params.reads_whole_prompt,
            marks=message.cache_marks,
            fork_at=num_prompt - 1 if has_siblings else None,
            num_forks=message.params.n - 1 if has_siblings else 0,
            adapter=message.adapter,
            is_private=bool(message.cache_salt),
        )
        sequence = Sequence(
            seq_id=seq_id,
            request=self,
            choice=choice,
            tokens=[*message.prompt_token_ids, *resumed],
            max_tokens=max_model_len if limit is None else min(num_prompt + limit, max_model_len),
            table=table,
            parent=parent,
        )
        self.sequences.append(sequence)
        return sequence
