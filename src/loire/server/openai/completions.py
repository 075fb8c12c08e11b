"""POST /v1/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from loire.base.errors import RequestError
from loire.base.outputs import PositionLogprobs
from loire.engine.requests import Submission
from loire.server.openai.answers import AnswerHead, ChunkWriter, built, shown_prompt, usage_of
from loire.server.openai.completion_logprobs import LogprobsWriter
from loire.server.openai.completions_protocol import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionRequest,
)
from loire.server.serving.client import CallClient, admit
from loire.server.serving.generation import Choice, Generation
from loire.server.web.connection import while_connected
from loire.server.web.descriptions import ERROR_RESPONSES, json_response, stream_description
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
    return await built(answer.generation, lambda: json_response(answer.whole()))


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
    return submissions


class CompletionAnswer:
    """Puts what the engine generates into the form of the completions API."""

    def __init__(self, body: CompletionRequest, generation: Generation) -> None:
        self.generation = generation
        self._body = body
        self._head = AnswerHead("cmpl", body.model)
        self._logprobs = [self._logprobs_writer(choice) for choice in generation.choices]

    def whole(self) -> Completion:
        """The answer, when everything has come."""
        return Completion(
            **self._head.fields(),
            choices=[
                CompletionChoice.model_validate(self._news(choice))
                for choice in self.generation.choices
            ],
            usage=usage_of(self.generation),
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes: each item one write, with one chunk per choice that has news."""
        options = self._body.stream_options
        writer = ChunkWriter(self._head, "text_completion", self.generation, options)
        async with aclosing(self.generation.news()) as news:
            async for choices in news:
                yield b"".join(writer.chunk([self._news(choice)]) for choice in choices)
        if writer.tells_usage:
            yield writer.usage()

    def _news(self, choice: Choice) -> dict[str, Any]:
        """What of a choice has not been told yet, as its form in the API."""
        begins = not choice.begun
        taken = choice.take()
        positions: list[PositionLogprobs | None] = [*taken.logprobs]
        logprobs = self._logprobs[choice.index]
        shown: dict[str, Any] | None = None
        if logprobs is not None:
            token_ids = [next(iter(position)) for position in taken.logprobs]
            if begins and self._body.echo:
                token_ids = [*choice.submission.request.prompt_token_ids, *token_ids]
                positions = [*choice.prompt_logprobs, *positions]
            shown = logprobs.write(token_ids, positions)
        news: dict[str, Any] = {
            "index": choice.index,
            "text": self._echo(choice) + taken.text if begins else taken.text,
            "logprobs": shown,
            "finish_reason": choice.finish_reason,
        }
        if self._body.return_token_ids:
            news["token_ids"] = taken.token_ids
            if begins:
                news["prompt_token_ids"] = list(choice.submission.request.prompt_token_ids)
        if self._body.prompt_logprobs is not None:
            news["prompt_logprobs"] = shown_prompt(choice.prompt_logprobs)
        return news

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
