"""Limits per tenant: requests and tokens per minute as token buckets, and sequences at a time.

A bucket holds a minute's worth and is refilled evenly. A call takes a request for each sequence
that it asks for (n of each prompt) and its prompts' tokens before it begins, or is refused; output
tokens are taken as they come, so that no answer is ever cut short. They can leave a debt, which
must be paid back before the next call.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from loire.base.errors import ConfigError
from loire.server.web.api_error import ApiError

Clock = Callable[[], float]

MOST = 10**15
"""A limit: a float tells as many from one more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a tenant may use; None is no limit. Raises ConfigError for limits below 1 or beyond
    MOST."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    """Sequences at a time."""
    storage_bytes: int | None = None
    """Of files, those that batches wrote among them."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"the limit {name} must be at least 1, but is {value}")
            if value is not None and value > MOST:
                raise ConfigError(f"the limit {name} must be at most {MOST:,}")


NO_LIMITS = Limits()


class Bucket:
    """Holds up to per_minute, is full at first, and is refilled evenly."""

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._time_s = clock()

    @property
    def level(self) -> float:
        """What can be taken now; negative if more was taken than there was."""
        now = self._clock()
        refill = (now - self._time_s) * self.per_minute / 60
        self._level = min(float(self.per_minute), self._level + refill)
        self._time_s = now
        return self._level

    def take(self, amount: int) -> None:
        """Take some, even if there is less."""
        self._level = self.level - amount

    def wait_s(self, level: float) -> float:
        """Seconds until it holds that much, if nothing is taken in between."""
        return max(0.0, level - self.level) * 60 / self.per_minute


class TenantMeter:
    """What one tenant has used, against its limits."""

    def __init__(
        self, tenant: str = "", limits: Limits = NO_LIMITS, clock: Clock = time.monotonic
    ) -> None:
        self.limits = limits
        self.num_running = 0
        """Sequences that run now, or calls of which it is not known yet how many they bring."""
        self._who = f"tenant {tenant!r}" if tenant else "this server"
        rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
        self._requests = None if rpm is None else Bucket(rpm, clock)
        self._tokens = None if tpm is None else Bucket(tpm, clock)

    def begin(self) -> "Use":
        """A call begins, with one sequence; its end() must follow.

        Raises ApiError (429), and then takes nothing.
        """
        if self._tokens is not None and self._tokens.level <= 0:
            raise _refused(
                f"{self._who} has used its {self._tokens.per_minute:,} tokens per minute",
                wait_s=self._tokens.wait_s(1),
            )
        self.take_sequences(1)
        return Use(self)

    def take_sequences(self, num_more: int, num_before: int = 0) -> None:
        """Take more for a call that has some. Raises ApiError (429), and then takes none."""
        brought = num_before + num_more
        called = f", and this call brings {brought:,}" if brought > 1 else ""
        most = self.limits.concurrency
        if most is not None and self.num_running + num_more > most:
            if brought > most:
                raise _never(f"{self._who} may have {most:,} sequences at a time{called}")
            raise _refused(
                f"{self._who} may have {most:,} sequences at a time, and "
                f"{self.num_running - num_before:,} are in progress{called}: try again when some "
                f"of them have ended",
                wait_s=1,
            )
        bucket = self._requests
        if bucket is not None:
            if brought > bucket.per_minute:
                raise _never(
                    f"{self._who} may make {bucket.per_minute:,} requests per minute{called}"
                )
            if bucket.level < num_more:
                raise _refused(
                    f"{self._who} has used its {bucket.per_minute:,} requests per minute{called}",
                    wait_s=bucket.wait_s(num_more),
                )
            bucket.take(num_more)
        self.num_running += num_more

    def give_back(self, num_requests: int) -> None:
        """Requests that were taken are not used."""
        if self._requests is not None:
            self._requests.take(-num_requests)

    def take_prompt(self, num_tokens: int) -> None:
        """Take the tokens of prompts. Raises ApiError (429) if there are not as many."""
        if self._tokens is None:
            return
        limit = self._tokens.per_minute
        if num_tokens > limit:
            raise ApiError(
                429,
                f"the prompt has {num_tokens:,} tokens, but {self._who} may use only {limit:,} per "
                f"minute: it can never be admitted; shorten it",
                code="rate_limit_exceeded",
            )
        level = self._tokens.level
        if num_tokens > level:
            raise _refused(
                f"the prompt has {num_tokens:,} tokens, but of its {limit:,} tokens per minute "
                f"{self._who} has {max(0, int(level)):,} left",
                wait_s=self._tokens.wait_s(num_tokens),
            )
        self._tokens.take(num_tokens)

    def take_output(self, num_tokens: int) -> None:
        """Take tokens that were generated."""
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    def headers(self) -> dict[str, str]:
        """Where the tenant stands, under OpenAI's names."""
        told = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                told[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level)))
                told[f"x-ratelimit-reset-{name}"] = _duration(bucket.wait_s(bucket.per_minute))
        return told


class Use:
    """What one call takes of its tenant's limits, beside tokens."""

    def __init__(self, meter: TenantMeter) -> None:
        self._meter = meter
        self._num_sequences = self._num_requests = 1

    def grow(self, num_sequences: int) -> None:
        """It brings so many in all. Raises ApiError (429), and then is as it was."""
        num_more = num_sequences - self._num_sequences
        self._meter.take_sequences(num_more, self._num_sequences)
        self._num_sequences += num_more
        self._num_requests += num_more

    def give_back(self) -> None:
        """It was refused for no fault of the tenant's: its requests are not used."""
        self._meter.give_back(self._num_requests)
        self._num_requests = 0

    def end(self) -> None:
        """It has ended."""
        self._meter.num_running -= self._num_sequences
        self._num_sequences = 0


def _never(reason: str) -> ApiError:
    return ApiError(
        429,
        f"{reason}: it can never be admitted; ask for fewer at a time",
        code="rate_limit_exceeded",
    )


def _refused(reason: str, *, wait_s: float) -> ApiError:
    seconds = max(1, math.ceil(wait_s))
    if wait_s > 1:
        reason += f": try again in {seconds} s"
    return ApiError(429, reason, code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 850ms, 7.5s, 1m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
