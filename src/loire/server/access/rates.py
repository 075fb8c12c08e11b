"""Limits per tenant: requests and tokens per minute as token buckets, and calls at a time.

A bucket holds a minute's worth and is refilled evenly. A call takes one request and its prompt's
tokens before it begins, or is refused and takes nothing; output tokens are taken as they come, so
that no answer is ever cut short. They can leave a debt, which must be paid back before the next
call.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from loire.base.errors import ConfigError
from loire.server.web.api_error import ApiError

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a tenant may use; None is no limit. Raises ConfigError for limits below 1."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    """Calls at a time."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"the limit {name} must be at least 1, but is {value}")


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
        self.num_calls = 0
        """Calls that run now."""
        self._who = f"tenant {tenant!r}" if tenant else "this server"
        rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
        self._requests = None if rpm is None else Bucket(rpm, clock)
        self._tokens = None if tpm is None else Bucket(tpm, clock)

    def begin(self) -> None:
        """A call begins; end() must follow. Raises ApiError (429), and then takes nothing."""
        concurrency = self.limits.concurrency
        if concurrency is not None and self.num_calls >= concurrency:
            raise _refused(
                f"{self._who} may make {concurrency} calls at a time, and {self.num_calls} are in "
                f"progress: try again when one of them has ended",
                wait_s=1,
            )
        if self._tokens is not None and self._tokens.level <= 0:
            raise _refused(
                f"{self._who} has used its {self._tokens.per_minute:,} tokens per minute",
                wait_s=self._tokens.wait_s(1),
            )
        if self._requests is not None:
            if self._requests.level < 1:
                raise _refused(
                    f"{self._who} has used its {self._requests.per_minute:,} requests per minute",
                    wait_s=self._requests.wait_s(1),
                )
            self._requests.take(1)
        self.num_calls += 1

    def give_back(self) -> None:
        """The call that began was refused for no fault of the tenant's: its request is not used."""
        if self._requests is not None:
            self._requests.take(-1)

    def end(self) -> None:
        """A call has ended."""
        self.num_calls -= 1

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
