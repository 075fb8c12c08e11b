"""What the engine's client hands to the user."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]
"""tool_calls: of an answer in a conversation that calls tools."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token at one position."""

    logprob: float
    rank: int
    """1 for the likeliest token."""
    decoded_token: str


PositionLogprobs = dict[int, Logprob]
"""Token id -> Logprob, for one position; the token that stands there comes first."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. arguments: a JSON object as text; cut off if the answer was too long."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of the n completions of a request.

    While a request streams, everything in it is what came since the last output. In an answer of
    a conversation, ``text`` is without thoughts and calls, which have fields of their own.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended it; None for the model's own end token."""
    logprobs: tuple[PositionLogprobs, ...] | None = None
    error: str | None = None
    reasoning: str = ""
    """What the model thought before it answered."""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """Life of a request, in seconds on the monotonic clock, from its arrival."""

    queue_s: float | None = None
    """From arrival to its first scheduled token."""
    ttft_s: float | None = None
    """From arrival to the first output token."""
    tpot_s: float | None = None
    """Mean time per output token after the first; None with fewer than two tokens."""
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """State of a request, as given to the user."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    num_cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    """One entry per prompt token; the first is None, as nothing predicts it."""
    pooled: tuple[float, ...] | None = None
    """The prompt as one vector, of a request with pooling that has ended."""
    timing: RequestTiming = RequestTiming()
