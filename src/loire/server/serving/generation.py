"""What one API call lets the engine do: n completions for each of its prompts, side by side."""

import asyncio
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, cast

from loire.base.outputs import CompletionOutput, PositionLogprobs, RequestOutput
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import OUTGROWN
from loire.engine.requests import Submission
from loire.server.serving.answer_bytes import LOGPROB_BYTES, NUMBER_BYTES
from loire.server.serving.client import CallClient
from loire.server.web.errors import ApiError

FinishReason = Literal["stop", "length"]

MAX_PIECES = 1024
"""Pieces of text that are kept apart while nobody takes them."""


class Taken(NamedTuple):
    """What is new of a choice."""

    text: str
    logprobs: list[PositionLogprobs]
    token_ids: list[int]


@dataclass(slots=True, eq=False)
class Choice:
    """A completion, and what of it has not been taken to the client yet.

    index: among all choices of the call: the prompt's number times n, plus the choice's own.
    """

    index: int
    submission: Submission
    begun: bool = False
    """Whether anything of it was taken before."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop string or token id of the request that ended it, if one did."""
    prompt_logprobs: Sequence[PositionLogprobs | None] = ()
    pooled: "array[float] | None" = None
    """float32, which is what the engine says."""
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    token_ids: "array[int]" = field(default_factory=lambda: array("I"))
    num_held: int = 0
    """Log-probabilities that have not been taken."""
    num_let_go: int = 0
    """Those that were taken since the last look."""
    _texts: list[str] = field(default_factory=list)

    @property
    def has_news(self) -> bool:
        """Whether there is anything that a client would see."""
        return bool(self._texts or self.logprobs or self.finish_reason)

    def add(self, output: CompletionOutput) -> None:
        """Enter what is new. Raises ApiError if the engine could not go on with it."""
        if output.finish_reason not in (None, "stop", "length"):
            reason = output.error or f"it ended with {output.finish_reason}"
            outgrown = OUTGROWN in reason
            raise ApiError(
                400 if outgrown else 500,
                f"the engine ended this request: {reason}",
                code="constraint_failed" if outgrown else "request_failed",
                # OpenAI's clients would send it again, and it would kill the next engine, too.
                headers={"x-should-retry": "false"},
            )
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        if output.text:
            self._texts.append(output.text)
        if len(self._texts) >= MAX_PIECES:
            self._texts = ["".join(self._texts)]
        if output.logprobs:
            self.logprobs += output.logprobs
            self.num_held += num_logprobs(output.logprobs)
        self.token_ids.extend(output.token_ids)

    def take(self) -> Taken:
        """What has come since the last call."""
        taken = Taken("".join(self._texts), self.logprobs, self.token_ids.tolist())
        self._texts, self.logprobs, self.token_ids = [], [], array("I")
        self.num_let_go, self.num_held = self.num_let_go + self.num_held, 0
        self.begun = True
        return taken


class Generation:
    """Runs the submissions of one call. Ending run() or news() early ends them all.

    prompt_only: nothing is asked for but the prompt (and its log-probabilities); the one token
    with which the engine ends a request is neither shown nor counted. Raises ApiError (429) beyond
    the caller's limits.
    """

    def __init__(
        self,
        client: CallClient,
        submissions: Sequence[Submission],
        *,
        prompt_only: bool = False,
    ) -> None:
        client.admit(submissions)
        self.frontend = client.frontend
        self._num_prompt_logprobs = [0] * len(submissions)
        """Positions whose log-probabilities have come."""
        self.num_completion_tokens = 0
        self._client = client
        self._submissions = submissions
        self._prompt_only = prompt_only
        self._cached_tokens = [0] * len(submissions)
        n = submissions[0].request.params.n
        self._n = n
        self.choices = [
            Choice(number * n + choice, submission)
            for number, submission in enumerate(submissions)
            for choice in range(n)
        ]

    @property
    def params(self) -> SamplingParams:
        """How its tokens are chosen."""
        return self._submissions[0].request.params

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(len(s.request.prompt_token_ids) for s in self._submissions)

    @property
    def num_shown(self) -> int:
        """Tokens and log-probabilities that the answer may show, with the prompt of each choice."""
        num_tokens = self._n * self.num_prompt_tokens + self.num_completion_tokens
        return num_tokens + self._client.held.num_bytes // LOGPROB_BYTES

    @property
    def num_cached_tokens(self) -> int:
        """Those of them that came from the prefix cache, as far as it is known."""
        return sum(self._cached_tokens)

    async def run(self) -> None:
        """Until all have ended; the choices then hold everything."""
        async with aclosing(self.news()) as news:
            async for _ in news:
                pass

    async def news(self) -> AsyncGenerator[list[Choice], None]:
        """The choices with news, each time there are any: all that has come in the meantime.

        What comes while the client does not read is put together in its choice, so that a slow
        reader costs no more memory than its answer. The first error of any stream ends all.
        """
        touched: dict[int, Choice] = {}
        errors: list[Exception] = []
        num_open = len(self._submissions)
        news = asyncio.Event()

        async def follow(number: int, stream: AsyncIterator[RequestOutput]) -> None:
            nonlocal num_open
            try:
                async with aclosing(cast("AsyncGenerator[RequestOutput, None]", stream)):
                    async for output in stream:
                        touched.update(self._enter(number, output))
                        news.set()
            except Exception as error:  # noqa: BLE001  raised below, in the task that waits for it
                errors.append(error)
            finally:
                num_open -= 1
                news.set()

        tasks = [
            asyncio.create_task(follow(number, self._client.stream(submission)))
            for number, submission in enumerate(self._submissions)
        ]
        try:
            while num_open or touched or errors:
                await news.wait()
                news.clear()
                choices = [choice for choice in touched.values() if choice.has_news]
                touched.clear()
                if choices:
                    yield choices
                    self._let_go(choices)
                if errors:
                    raise errors[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _enter(self, number: int, output: RequestOutput) -> dict[int, Choice]:
        """Enter what has come of one prompt; the choices that it concerns, by their index. Raises
        ApiError if the answer holds too much."""
        touched = {}
        self._cached_tokens[number] = output.num_cached_tokens
        self._enter_prompt(number, output)
        for delta in map(self._shown, output.outputs):
            choice = self.choices[number * self._n + delta.index]
            choice.add(delta)
            if delta.logprobs:
                self._client.held.add(num_logprobs(delta.logprobs) * LOGPROB_BYTES)
            self.num_completion_tokens += len(delta.token_ids)
            touched[choice.index] = choice
        return touched

    def _enter_prompt(self, number: int, output: RequestOutput) -> None:
        """Enter what has come of the prompt itself."""
        first = number * self._n
        if output.pooled is not None and self.choices[first].pooled is None:
            self._client.held.add(len(output.pooled) * NUMBER_BYTES)
            self.choices[first].pooled = array("f", output.pooled)
        positions, before = output.prompt_logprobs or (), self._num_prompt_logprobs[number]
        if len(positions) > before:
            self._client.held.add(num_logprobs(positions[before:]) * LOGPROB_BYTES)
            self._num_prompt_logprobs[number] = len(positions)
            for choice in self.choices[first : first + self._n]:
                choice.prompt_logprobs = positions

    def _let_go(self, choices: Sequence[Choice]) -> None:
        """What was taken of these has been sent."""
        for choice in choices:
            self._client.held.take(choice.num_let_go * LOGPROB_BYTES)
            choice.num_let_go = 0

    def _shown(self, delta: CompletionOutput) -> CompletionOutput:
        if not self._prompt_only or delta.error is not None:
            return delta
        reason: FinishReason | None = None if delta.finish_reason is None else "length"
        return replace(delta, text="", token_ids=(), logprobs=None, finish_reason=reason)


def num_logprobs(positions: Sequence[PositionLogprobs | None]) -> int:
    """Of all tokens at some positions."""
    return sum(len(position) for position in positions if position is not None)
