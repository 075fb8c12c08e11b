"""One HTTP call: what is known about it, from its first byte to its last."""

import time
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from starlette.types import Scope

from loire.base.outputs import RequestTiming

Outcome: TypeAlias = Literal["completed", "aborted", "failed"]


@dataclass(slots=True, eq=False)
class Waiting:
    """Requests of a tenant of which nothing is computed yet."""

    num_waiting_sequences: int = 0
    """That they ask for: n of each."""
    num_waiting_tokens: int = 0
    """Of their prompts."""


@dataclass(slots=True, eq=False)
class RequestLife:
    """One request that a call made to the engine. Times are monotonic, in seconds."""

    request_id: str
    """The engine's name for it."""
    arrival_s: float
    num_prompt_tokens: int
    num_sequences: int = 1
    """That it asks for: n."""
    adapter: str = ""
    """The name of the one that it is for."""
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    waits_in: Waiting | None = None
    """Counts it while nothing of it is computed."""
    num_steps: int = 0
    """Steps that computed something of it."""
    num_recomputations: int = 0
    """How often a sequence of it was preempted after its first token, and computed again."""
    timing: RequestTiming = field(default_factory=RequestTiming)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    """Per choice, how it ended."""
    decoding: set[int] = field(default_factory=set)
    """Its sequences that generate tokens, by the scheduler's numbers."""
    outcome: Outcome | None = None
    """None while it is waiting or running."""
    error: str | None = None
    end_s: float | None = None

    def begins_to_wait(self, waiting: Waiting) -> None:
        """Be counted among what waits."""
        self.waits_in = waiting
        waiting.num_waiting_sequences += self.num_sequences
        waiting.num_waiting_tokens += self.num_prompt_tokens

    def waits_no_more(self) -> None:
        """Something of it is computed, or it has ended."""
        if self.waits_in is not None:
            self.waits_in.num_waiting_sequences -= self.num_sequences
            self.waits_in.num_waiting_tokens -= self.num_prompt_tokens
            self.waits_in = None


@dataclass(slots=True, eq=False)
class Call:
    """call_id: the client's own, or one that was made up. Times as in RequestLife."""

    call_id: str
    method: str = ""
    path: str = ""
    tenant: str = ""
    address: str = ""
    """Where it comes from, without the port."""
    start_s: float = field(default_factory=time.monotonic)
    start_unix_s: float = field(default_factory=time.time)
    end_s: float | None = None
    status: int | None = None
    """Of the response; None before it began."""
    error_code: str | None = None
    """Why it was refused or failed."""
    bad_key: Literal["missing", "wrong", "throttled"] | None = None
    """Why it was not known who makes it."""
    num_unnoted: int = 0
    """Calls of strangers before it that the audit log does not have."""
    requests: list[RequestLife] = field(default_factory=list)
    trace_headers: dict[str, str] = field(default_factory=dict)
    """The caller's own trace, by the names of the W3C's headers."""


def set_call(scope: Scope, call: Call) -> None:
    """Note what a scope belongs to."""
    scope.setdefault("state", {})["call"] = call


def get_call(scope: Scope) -> Call:
    """The call that a scope belongs to; a nameless one if none was noted."""
    call: Call | None = scope.get("state", {}).get("call")
    return call or Call("")
