"""What crosses between deciding and computing: a StepPlan goes down, a StepResult comes up.

A step is one forward pass over a flat batch of tokens. Scheduling makes the plan without knowing
how it is computed; execution computes it without knowing why. Both values are immutable.
"""

from dataclasses import dataclass

from loire.base.sampling import SamplingParams

PENDING_TOKEN = -1
"""In StepRow.token_ids: the token that the step before this one samples for the same sequence."""


@dataclass(frozen=True, slots=True)
class NewSequence:
    """Sampling state of a sequence, sent once, before or with its first row.

    A sequence may come with tokens it has already generated (after preemption, or resumed by a
    new engine process): they count as output for penalties and min_tokens, never as prompt.
    """

    seq_id: int
    params: SamplingParams
    seed: int
    """64 bits; random numbers are a pure function of (seed, choice, position)."""
    choice: int
    """Index among the n completions of its request."""
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    """All tokens that would end the sequence; min_tokens forbids them for a while."""
    adapter: str = ""
    """Which adapter's weights are added to the model's, by its content; "" for none."""


@dataclass(frozen=True, slots=True)
class TableUpdate:
    """What changed in a sequence's block table: from index first on, it is these blocks."""

    group: int
    """Which of the model's cache groups (loire.base.cache_geometry)."""
    first: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepRow:
    """One sequence's share of a step: some consecutive tokens of it."""

    seq_id: int
    token_ids: tuple[int, ...]
    """The tokens to compute; the last one may be PENDING_TOKEN."""
    start: int
    """Position of the first of them in the sequence, from 0."""
    tables: tuple[TableUpdate, ...] = ()
    """What changed in its block tables since its row before; all of them in its first one, and in
    the first one after a preemption."""
    samples: bool = False
    """Whether the tokens reach the sequence's newest, so that logits choose the next."""
    num_drafts: int = 0
    """How many of the tokens, the last ones, are drafted: only guessed to be what the ones before
    them sample. The result is as many tokens as were guessed rightly, and one more."""
    epoch: int = 0
    """How often the sequence had been preempted; results of an older epoch are dropped."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: who computes which tokens, into which blocks."""

    step_id: int
    rows: tuple[StepRow, ...]
    new_sequences: tuple[NewSequence, ...] = ()
    ended: tuple[int, ...] = ()
    """Sequences whose sampling state can be dropped, before new_sequences are added."""
    copies: tuple[tuple[int, int], ...] = ()
    """(source, target) pages to copy before anything is written, all read before any is: copy on
    write, and states that sequences start from."""
    zeroed: tuple[int, ...] = ()
    """Pages to fill with zeros after that, before the rows: states of sequences that start."""
    snapshots: tuple[tuple[int, int], ...] = ()
    """(source, target) pages to copy after the rows: states as the rows left them."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, of the unmodified model (before penalties).

    ``token_ids[0]`` is the token that stands at the position; the likeliest follow in order.
    ``rank`` counts from 1: how many tokens are at least as likely as the one that stands there.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    rank: int


@dataclass(frozen=True, slots=True)
class RowResult:
    """What a row gave."""

    seq_id: int
    epoch: int = 0
    token_ids: tuple[int, ...] = ()
    """The sampled tokens, if the row samples and no error came up: one, and before it the drafted
    ones that were accepted."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each sampled token, if the request asks for them."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """For the prompt positions start + 1, start + 2, ... that this row's logits predict (choice 0
    of a request that asks for them)."""
    pooled: tuple[float, ...] | None = None
    error: str | None = None
    """Why this sequence cannot go on, such as logits that are not finite."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave: one RowResult per row of its plan, in the same order."""

    step_id: int
    rows: tuple[RowResult, ...]
    compute_s: float
    """Wall time of the forward pass and sampling, in seconds."""


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """One sequence in one step, for pictures and statistics.

    No tokens at all: the sequence has ended, but its batch still holds the slot.
    """

    slot: int
    """The row it occupies in the batch; given to others after it has left."""
    seq_id: int
    request_id: str
    num_prefill_tokens: int
    num_decode_tokens: int
    ended: bool
    num_blocks: int = 0
    """KV blocks it holds after the step and took itself. Those shared with it are counted where
    they were taken, so the sum over sequences is never more than the blocks in use."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What happened in one step. Cheap enough to be kept for every step."""

    step_id: int
    time_s: float
    """Monotonic time at which the step was committed, in seconds."""
    compute_s: float
    slots: tuple[SlotRecord, ...]
    num_running: int
    num_waiting: int
    blocks_free: int
    blocks_cached: int
    blocks_in_use: int
    kv_live_tokens: int
    """Slots of distinct tokens whose KV running sequences hold. A page counts as block_size slots,
    whatever lies in it; with the three below, these are the slots of all pages in use."""
    kv_fragmented_tokens: int
    """Unused slots of sequences' last, partly filled blocks: internal fragmentation."""
    kv_reserved_tokens: int
    """Slots of whole blocks that are held for tokens to come."""
    kv_idle_tokens: int
    """Slots that ended sequences hold until their batch ends."""
    num_preemptions: int = 0
    """Preemptions that made room for this step."""
    num_prefix_hit_tokens: int = 0
    """Prompt tokens of newly admitted requests that were found in the cache."""
