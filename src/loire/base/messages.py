"""What crosses between the engine and its client: plain values, fit for a socket.

The client keeps the ledger (prompt, parameters, tokens received), detokenizes and matches stop
strings; the engine sees token ids alone.
"""

from dataclasses import dataclass

from loire.base.outputs import FinishReason
from loire.base.sampling import SamplingParams
from loire.base.step import TokenLogprobs


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request on its way to the engine: token ids and resolved parameters."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    stop_token_ids: tuple[int, ...] = ()
    """All token ids that end it: the model's own (unless ignore_eos) and the request's."""
    cache_salt: str = ""
    adapter: str = ""
    """Which adapter it is for, by its content; it has been announced then. "" for none."""
    output_token_ids: tuple[tuple[int, ...], ...] = ()
    """Per choice, tokens generated earlier, when a request is resumed."""
    cache_marks: tuple[int, ...] = ()
    """Positions in the prompt, such as ends of turns, where others are likely to part from it: a
    model that keeps states keeps one there."""
    priority: int = 0
    """Lower is earlier; above 0 it is background work."""
    tenant: str = ""
    """On whose behalf; within a priority, tenants are served the same number of tokens."""


@dataclass(frozen=True, slots=True)
class AnnouncedAdapter:
    """An adapter that requests may name from now on."""

    identity: str
    """Hash of its content."""
    path: str
    """Its directory."""
    pinned: bool = False
    """Whether its weights are read at once, and stay in memory."""
    withdrawn: bool = False
    """Whether no name stands for it any more: its weights go as soon as no request needs them."""


@dataclass(frozen=True, slots=True)
class AdapterCounts:
    """How the adapters of an engine stand."""

    num_resident: int = 0
    """Those whose weights are in memory."""
    num_bytes: int = 0
    """Bytes of these."""
    hits: int = 0
    """Sequences that found theirs there."""
    loads: int = 0
    """Adapters that were read from their files."""
    evictions: int = 0
    """Adapters that made room for others."""


@dataclass(frozen=True, slots=True)
class SequenceUpdate:
    """News of one sequence, on its way from the engine to its client."""

    request_id: str
    choice: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    pooled: tuple[float, ...] | None = None
    """The prompt as one vector, with the last token of a request that asks for it."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    first_scheduled_s: float | None = None
    """Monotonic time of the step that first computed the request."""
