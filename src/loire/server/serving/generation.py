"""What one API call lets the engine do: n completions for each of its prompts, side by side."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, cast

from loire.base.outputs import CompletionOutput, PositionLogprobs, RequestOutput
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import OUTGROWN
from loire.engine.requests import Submission
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
    pooled: tuple[float, ...] | None = None
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
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
        self.logprobs += output.logprobs or ()
        self.token_ids += output.token_ids

    def take(self) -> Taken:
        """What has come since the last call."""
        taken = Taken("".join(self._texts), self.logprobs, self.token_ids)
        self._texts, self.logprobs, self.token_ids = [], [], []
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
                if errors:
                    raise errors[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _enter(self, number: int, output: RequestOutput) -> dict[int, Choice]:
        """Enter what has come of one prompt; the choices that it concerns, by their index."""
        touched = {}
        self._cached_tokens[number] = output.num_cached_tokens
        for delta in map(self._shown, output.outputs):
            choice = self.choices[number * self._n + delta.index]
            choice.prompt_logprobs = output.prompt_logprobs or ()
            choice.pooled = output.pooled
            choice.add(delta)
            self.num_completion_tokens += len(delta.token_ids)
            touched[choice.index] = choice
        return touched

    def _shown(self, delta: CompletionOutput) -> CompletionOutput:
        if not self._prompt_only or delta.error is not None:
            return delta
        reason: FinishReason | None = None if delta.finish_reason is None else "length"
        return replace(delta, text="", token_ids=(), logprobs=None, finish_reason=reason)
