"""What answers may hold until their clients have them.

An answer can be thousands of times as large as what asks for it: log-probabilities of each token,
the prompt once more with each of n choices. So what is known beforehand is counted before anything
is computed, and the rest while it comes.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from loire.base.errors import RequestError
from loire.engine.requests import Submission
from loire.server.web.errors import ApiError

LOGPROB_BYTES = 256
"""Of a token and its log-probability, until they are sent, with the JSON of it."""
NUMBER_BYTES = 32
"""Of a number of a vector, with its JSON."""
TOKEN_BYTES = 16
"""Of a token id, with its JSON."""
CHARACTER_BYTES = 8
"""Of a character that is repeated, with its JSON: a control character takes six."""
MAX_OF_ANSWER = 2**28
"""As much as 2,048 vectors of 4,096 numbers, or a million log-probabilities."""
MAX_OF_ALL = 2**29
"""Of a server, beyond which it is the turn of whoever holds more than others to give up."""


class Share(NamedTuple):
    """A share of an answer: the field that asks for it, what it is, and its bytes."""

    param: str
    what: str
    num_bytes: int


def logprob_shares(
    submissions: Sequence[Submission],
    *,
    field: str = "prompt_logprobs",
    times_shown: int = 1,
    streams: bool,
) -> list[Share]:
    """Of the log-probabilities that requests of the same parameters ask for.

    field: which asks for those of prompts. times_shown: how often they are shown. streams: those of
    the output leave as they come.
    """
    params = submissions[0].request.params
    shares = []
    if params.prompt_logprobs is not None:
        num_tokens = sum(len(one.request.prompt_token_ids) for one in submissions)
        num_each = params.prompt_logprobs + 1
        what = f"{num_each} log-probabilities of each of {num_tokens:,} prompt tokens"
        if times_shown > 1:
            what += f", {times_shown} times"
        num_bytes = times_shown * num_tokens * num_each * LOGPROB_BYTES
        shares.append(Share(field, what, num_bytes))
    if params.logprobs is not None and params.max_tokens is not None and not streams:
        num_tokens = len(submissions) * params.n * params.max_tokens
        num_each = params.logprobs + 1
        what = f"{num_each} log-probabilities of each of up to {num_tokens:,} tokens"
        shares.append(Share("logprobs", what, num_tokens * num_each * LOGPROB_BYTES))
    return shares


def check_answer(shares: Sequence[Share]) -> None:
    """Raise RequestError, naming the field with the largest share, if an answer would be too
    large."""
    num_bytes = sum(share.num_bytes for share in shares)
    if num_bytes > MAX_OF_ANSWER:
        largest = max(shares, key=lambda share: share.num_bytes)
        raise RequestError(
            f"the answer would take {_shown(num_bytes)} of memory, most of it for {largest.what}, "
            f"but one may take {_shown(MAX_OF_ANSWER)}: ask for fewer, or split the request",
            param=largest.param,
        )


class HeldAnswers:
    """What all answers of a server hold. For one event loop.

    Once they hold more than MAX_OF_ALL, the calls of a tenant that holds more than its equal part
    end as soon as they hold any more.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._of: Counter[str] = Counter()
        """By tenant; those that hold something."""

    def add(self, tenant: str, num_bytes: int) -> None:
        """A tenant's answers hold so much more. Raises ApiError (429), and then they do not."""
        total, own = self.num_bytes + num_bytes, self._of[tenant] + num_bytes
        num_tenants = len(self._of.keys() | {tenant})
        if total > MAX_OF_ALL and own * num_tenants > MAX_OF_ALL:
            raise ApiError(
                429,
                f"answers with {_shown(total)} wait for their clients, but this server holds "
                f"{_shown(MAX_OF_ALL)}: ask for fewer log-probabilities at a time, or later",
                code="answers_too_large",
                headers={"Retry-After": "1"},
            )
        self.num_bytes, self._of[tenant] = total, own

    def take(self, tenant: str, num_bytes: int) -> None:
        """They hold so much less."""
        self.num_bytes -= num_bytes
        self._of[tenant] -= num_bytes
        if not self._of[tenant]:
            del self._of[tenant]


class HeldAnswer:
    """What the answer to one call holds."""

    def __init__(self, all_answers: HeldAnswers, tenant: str) -> None:
        self.num_bytes = 0
        self._all = all_answers
        self._tenant = tenant

    def add(self, num_bytes: int) -> None:
        """So much more. Raises ApiError: 400 if it is too much for one, 429 for all."""
        if not num_bytes:
            return
        if self.num_bytes + num_bytes > MAX_OF_ANSWER:
            raise ApiError(
                400,
                f"what this answer holds until its client has it would take more than "
                f"{_shown(MAX_OF_ANSWER)} of memory: ask for less at a time, or stream it and read "
                f"the stream",
                code="answer_too_large",
            )
        self._all.add(self._tenant, num_bytes)
        self.num_bytes += num_bytes

    def take(self, num_bytes: int) -> None:
        """So much was sent."""
        if num_bytes:
            self._all.take(self._tenant, num_bytes)
            self.num_bytes -= num_bytes

    def end(self) -> None:
        """The call has ended."""
        self.take(self.num_bytes)


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MB"
