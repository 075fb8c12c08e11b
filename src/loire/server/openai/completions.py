"""POST /v1/completions."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response

from loire.base.errors import RequestError
from loire.base.outputs import PositionLogprobs
from loire.engine.requests import Submission
from loire.server.openai.answers import (
    AnswerHead,
    ChunkWriter,
    beside_loop,
    shown_prompt,
    usage_of,
    whole_answer,
)
from loire.server.openai.completion_logprobs import LogprobsWriter
from loire.server.openai.completions_protocol import (
    Completion,
    CompletionChunk,
    CompletionRequest,
)
from loire.server.serving.answer_bytes import (
    CHARACTER_BYTES,
    TOKEN_BYTES,
    Share,
    check_answer,
    logprob_shares,
)
from loire.server.serving.client import CallClient, admit
from loire.server.serving.generation import Choice, Generation, Taken
from loire.server.web.connection import while_connected
from loire.server.web.descriptions import ERROR_RESPONSES, stream_description
from loire.server.web.json_body import JsonRoute
from loire.server.web.sse import EventStream
from loire.text.infill import infill_prompt

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses=ERROR_RESPONSES | stream_description(CompletionChunk),
)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """One or many texts, continued."""
    client = admit(request, body.model)
    # Off the event loop: long prompts take a while to tokenize.
    submissions = await client.prepare(request, lambda: submissions_of(client, body))
    answer = CompletionAnswer(
        body, Generation(client, submissions, prompt_only=body.max_tokens == 0)
    )
    if body.stream:
        return EventStream(answer.events())
    await while_connected(request.receive, answer.generation.run())
    return await whole_answer(answer.generation, answer.whole)


def submissions_of(client: CallClient, body: CompletionRequest) -> list[Submission]:
    """The request of each prompt. Not for the event loop. Raises RequestError."""
    params, origin = body.sampling_params(), client.origin(body.cache_salt, body.priority)
    submissions = []
    for number, given in enumerate(body.prompts):
        try:
            prompt = given
            if body.suffix is not None and isinstance(given, str):
                prompt = infill_prompt(client.frontend.tokenizer, given, body.suffix)
            submissions.append(
                client.frontend.prompt(
                    client.next_id(),
                    prompt,
                    params,
                    origin=origin,
                )
            )
        except RequestError as error:
            if error.param == "prompt" and len(body.prompts) > 1:
                error.param = f"prompt[{number}]"
            elif error.param == "structured_outputs":
                error.call_field(body.structure_field)
            raise
    _check_answer(client, body, submissions)
    return submissions


def _check_answer(
    client: CallClient, body: CompletionRequest, submissions: Sequence[Submission]
) -> None:
    """Raise RequestError if the answer would be too large."""
    asked = body.prompt_logprobs is not None
    echoed = body.echo and body.logprobs is not None
    shares = logprob_shares(
        submissions,
        field="prompt_logprobs" if asked else "logprobs",
        times_shown=body.n * (asked + echoed),
        streams=body.stream,
    )
    num_tokens = body.n * sum(len(one.request.prompt_token_ids) for one in submissions)
    if body.return_token_ids:
        what = f"{num_tokens:,} token ids of prompts"
        shares.append(Share("return_token_ids", what, num_tokens * TOKEN_BYTES))
    if body.echo:
        # Of token ids it is not known yet how long a text they are.
        longest = client.frontend.tokenizer.longest_token
        num_characters = body.n * sum(
            longest * len(one.request.prompt_token_ids) if one.prompt is None else len(one.prompt)
            for one in submissions
        )
        what = f"up to {num_characters:,} characters of prompts"
        shares.append(Share("echo", what, num_characters * CHARACTER_BYTES))
    check_answer(shares)


class _News(NamedTuple):
    """What of a choice has not been told yet, taken on the event loop, where more comes."""

    choice: Choice
    begins: bool
    taken: Taken
    finish_reason: str | None

    @classmethod
    def of(cls, choice: Choice) -> "_News":
        """All that has come until now."""
        return cls(choice, not choice.begun, choice.take(), choice.finish_reason)


class CompletionAnswer:
    """Puts what the engine generates into the form of the completions API."""

    def __init__(self, body: CompletionRequest, generation: Generation) -> None:
        self.generation = generation
        self._body = body
        self._head = AnswerHead("cmpl", body.model)
        self._logprobs = [self._logprobs_writer(choice) for choice in generation.choices]

    def whole(self) -> dict[str, Any]:
        """The answer, when everything has come: a Completion."""
        return {
            **self._head.fields(),
            "object": "text_completion",
            "choices": map(self._whole_choice, self.generation.choices),
            "usage": usage_of(self.generation).model_dump(),
        }

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes: a chunk for each choice that has news, and one write of them all
        where they are not large."""
        options = self._body.stream_options
        writer = ChunkWriter(self._head, "text_completion", self.generation, options)
        async with aclosing(self.generation.news()) as news:
            async for choices in news:
                taken = [_News.of(choice) for choice in choices]
                if self._repeats_prompt and any(one.begins for one in taken):
                    for one in taken:
                        yield await beside_loop(
                            self.generation, partial(self._large_chunk, writer, one)
                        )
                else:
                    yield b"".join(writer.chunk(self._shown(one)) for one in taken)
        if writer.tells_usage:
            yield writer.usage()

    def _large_chunk(self, writer: ChunkWriter, news: "_News") -> bytes:
        return writer.chunk(self._with_iterators(news), large=True)

    @property
    def _repeats_prompt(self) -> bool:
        return self._body.echo or self._body.return_token_ids

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        shown = self._with_iterators(_News.of(choice))
        if self._body.prompt_logprobs is not None:
            shown["prompt_logprobs"] = shown_prompt(choice.prompt_logprobs)
        return shown

    def _with_iterators(self, news: "_News") -> dict[str, Any]:
        """What is shown of a choice, its longest list as written() takes it."""
        shown = self._shown(news)
        if shown["logprobs"] is not None and shown["logprobs"]["top_logprobs"] is not None:
            shown["logprobs"]["top_logprobs"] = iter(shown["logprobs"]["top_logprobs"])
        return shown

    def _shown(self, news: "_News") -> dict[str, Any]:
        """What of a choice has not been told yet, as its form in the API."""
        choice, begins, taken = news.choice, news.begins, news.taken
        positions: list[PositionLogprobs | None] = [*taken.logprobs]
        logprobs = self._logprobs[choice.index]
        told: dict[str, Any] | None = None
        if logprobs is not None:
            token_ids = [next(iter(position)) for position in taken.logprobs]
            if begins and self._body.echo:
                token_ids = [*choice.submission.request.prompt_token_ids, *token_ids]
                positions = [*choice.prompt_logprobs, *positions]
            told = logprobs.write(token_ids, positions)
        shown: dict[str, Any] = {
            "index": choice.index,
            "text": self._echo(choice) + taken.text if begins else taken.text,
            "logprobs": told,
            "finish_reason": news.finish_reason,
        }
        if self._body.return_token_ids:
            shown["token_ids"] = taken.token_ids
            if begins:
                shown["prompt_token_ids"] = list(choice.submission.request.prompt_token_ids)
        return shown

    def _echo(self, choice: Choice) -> str:
        """The prompt as it was sent; token ids as the text they stand for."""
        if not self._body.echo:
            return ""
        submission = choice.submission
        if submission.prompt is not None:
            return submission.prompt
        return self.generation.frontend.tokenizer.decode(
            submission.request.prompt_token_ids, self._body.skip_special_tokens
        )

    def _logprobs_writer(self, choice: Choice) -> LogprobsWriter | None:
        if self._body.logprobs is None:
            return None
        before = () if self._body.echo else choice.submission.request.prompt_token_ids
        return LogprobsWriter(
            self.generation.frontend.tokenizer,
            before,
            num_top=self._body.logprobs,
            skip_special_tokens=self._body.skip_special_tokens,
        )
