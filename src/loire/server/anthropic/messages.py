"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

import json
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from loire.base.errors import PromptTooLongError, RequestError
from loire.base.sampling import SamplingParams
from loire.engine.dialogue import Turn, begin_turn, prompt_of
from loire.server.access.caller import get_caller
from loire.server.anthropic.answer import AnswerBlock, Message, MessagesUsage, TokenCount
from loire.server.anthropic.request import CountRequest, MessagesRequest
from loire.server.serving.client import CallClient, admit, prepare
from loire.server.serving.generation import Choice, Generation
from loire.server.serving.served import Served
from loire.server.web.connection import while_connected
from loire.server.web.errors import error_text
from loire.server.web.ignored import note_ignored
from loire.server.web.json_body import JsonRoute
from loire.server.web.sse import EventStream, event
from loire.text.tools.events import (
    AnswerEvent,
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ReasoningDelta,
)

router = APIRouter(route_class=JsonRoute)

_ANTHROPIC_NAMES = {
    "stop": "stop_sequences",
    "prompt": "messages",
    "structured_outputs": "output_config.format.schema",
    "reasoning_effort": "thinking",
}


class MessagesErrorDetail(BaseModel):
    """What was wrong."""

    type: str
    message: str


class MessagesError(BaseModel):
    """Every answer that is not a success."""

    type: Literal["error"]
    error: MessagesErrorDetail


_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": MessagesError, "description": "The request is mistaken"},
    "5XX": {"model": MessagesError, "description": "The engine loads, has stopped, or gave up"},
}


@router.post("/v1/messages", response_model=Message, responses=_ERRORS)
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """The next message of a conversation; with "stream": true as events."""
    client = admit(request, body.model)
    # Off the event loop: a long conversation takes a while to render and tokenize.
    turn = await client.prepare(request, lambda: _submit(client, body))
    for name in turn.ignored:
        note_ignored(name)
    generation = Generation(client, [turn.submission], prompt_only=body.max_tokens == 0)
    answer = MessagesAnswer(body.model, turn, generation)
    if body.stream:
        return EventStream(answer.events(), done=b"", failure=_failure)
    await while_connected(request.receive, answer.generation.run())
    text = answer.whole().model_dump_json(exclude_none=True)
    # These two are null where they do not apply, not absent.
    return Response(_with_nulls(text), media_type="application/json")


@router.post("/v1/messages/count_tokens", responses=_ERRORS)
async def count_tokens(body: CountRequest, served: Served, request: Request) -> TokenCount:
    """How many tokens the prompt of such a request would have."""
    frontend = served.engine_for(body.model, get_caller(request.scope)).frontend

    def count() -> int:
        prompt = prompt_of(frontend, body.conversation())
        return len(frontend.tokenize(prompt, add_special_tokens=False))

    return TokenCount(input_tokens=await prepare(request, count))


def _submit(client: CallClient, body: MessagesRequest) -> Turn:
    params = body.sampling_params()
    # The field is compulsory, so clients send what the largest models take.
    most = client.config.max_model_len
    if params.max_tokens is not None and params.max_tokens >= most:
        params = replace(params, max_tokens=None)

    def begin(params: SamplingParams) -> Turn:
        return begin_turn(
            client.frontend,
            client.next_id(),
            body.conversation(),
            params,
            origin=client.origin(),
        )

    try:
        return begin(params)
    except PromptTooLongError as error:
        if error.param != "max_tokens":
            raise _renamed(error) from error
        return begin(replace(params, max_tokens=None))
    except RequestError as error:
        raise _renamed(error) from error


def _renamed(error: RequestError) -> RequestError:
    if error.param in _ANTHROPIC_NAMES:
        error.call_field(_ANTHROPIC_NAMES[error.param])
    return error


def _failure(error: Exception) -> bytes:
    return event(error_text(error, "/v1/messages")[1], "error")


def _with_nulls(text: str) -> str:
    body = json.loads(text)
    return json.dumps({"stop_sequence": None, **body}, ensure_ascii=False)


class MessagesAnswer:
    """Puts what the engine generates into the form of Anthropic's API."""

    def __init__(self, model: str, turn: Turn, generation: Generation) -> None:
        self.generation = generation
        self._model = model
        self._reader = turn.reader()
        self._id = f"msg_{uuid.uuid4().hex}"

    def whole(self) -> Message:
        """The answer, when everything has come."""
        [choice] = self.generation.choices
        text = choice.take().text
        blocks = _blocks(self._reader.read(text, choice.finish_reason))
        reason, sequence = self._end(choice)
        return Message(
            id=self._id,
            model=self._model,
            content=blocks,
            stop_reason=reason,
            stop_sequence=sequence,
            usage=self._usage(),
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes."""
        [choice] = self.generation.choices
        blocks = _BlockWriter()
        async with aclosing(self.generation.news()) as news:
            async for _ in news:
                begin = b"" if choice.begun else self._begin()
                text = choice.take().text
                events = self._reader.read(text, choice.finish_reason)
                yield begin + b"".join(blocks.write(events))
        reason, sequence = self._end(choice)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = self._usage().model_dump()
        ends = [*blocks.close(), _event("message_delta", delta=delta, usage=usage)]
        yield b"".join([*ends, _event("message_stop")])

    def _begin(self) -> bytes:
        message = Message(
            id=self._id,
            model=self._model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=self._usage(),
        )
        return _event("message_start", message=message.model_dump()) + _event("ping")

    def _end(
        self, choice: Choice
    ) -> tuple[Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"], str | None]:
        assert choice.finish_reason is not None, "every choice ends"
        match self._reader.finish_reason(choice.finish_reason):
            case "length":
                return "max_tokens", None
            case "tool_calls":
                return "tool_use", None
        if isinstance(choice.stop_reason, str):
            return "stop_sequence", choice.stop_reason
        return "end_turn", None

    def _usage(self) -> MessagesUsage:
        cached = self.generation.num_cached_tokens
        return MessagesUsage(
            input_tokens=self.generation.num_prompt_tokens - cached,
            output_tokens=self.generation.num_completion_tokens,
            cache_read_input_tokens=cached,
        )


def _blocks(events: Iterable[AnswerEvent]) -> list[AnswerBlock]:
    """The parts of a whole answer, in the order in which they were written; one at least."""
    parts: list[tuple[str, list[str], CallStarted | None]] = []
    for item in events:
        match item:
            case ReasoningDelta(text) | ContentDelta(text):
                kind = "thinking" if isinstance(item, ReasoningDelta) else "text"
                if not parts or parts[-1][0] != kind:
                    parts.append((kind, [], None))
                parts[-1][1].append(text)
            case CallStarted():
                parts.append(("tool_use", [], item))
            case ArgumentsDelta(_, text):
                parts[-1][1].append(text)
            case CallBroken():
                parts.pop()
            case CallEnded():
                pass
    return [_block(*part) for part in parts or [("text", [], None)]]


def _block(kind: str, texts: list[str], call: CallStarted | None) -> AnswerBlock:
    text = "".join(texts)
    if call is not None:
        return AnswerBlock(type="tool_use", id=call.id, name=call.name, input=_input(text))
    if kind == "thinking":
        return AnswerBlock(type="thinking", thinking=text, signature="")
    return AnswerBlock(type="text", text=text)


class _BlockWriter:
    """Writes events of content blocks, which follow one another and never overlap."""

    def __init__(self) -> None:
        self._count = 0
        self._open: str | None = None

    def write(self, news: Iterable[AnswerEvent]) -> list[bytes]:
        """The events that tell the news."""
        written: list[bytes] = []
        for item in news:
            match item:
                case ReasoningDelta(text):
                    block = {"type": "thinking", "thinking": "", "signature": ""}
                    written += self._opened("thinking", block)
                    written.append(self._delta({"type": "thinking_delta", "thinking": text}))
                case ContentDelta(text):
                    written += self._opened("text", {"type": "text", "text": ""})
                    written.append(self._delta({"type": "text_delta", "text": text}))
                case CallStarted(_, call_id, name):
                    written += self._closed()
                    block = {"type": "tool_use", "id": call_id, "name": name}
                    written += self._opened("tool_use", {**block, "input": {}})
                case ArgumentsDelta(_, text):
                    written.append(self._delta({"type": "input_json_delta", "partial_json": text}))
                case CallEnded() | CallBroken():
                    written += self._closed()
        return written

    def close(self) -> list[bytes]:
        """The end of the last block; an answer has one at least."""
        if self._count == 0:
            return [*self._opened("text", {"type": "text", "text": ""}), *self._closed()]
        return self._closed()

    def _opened(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        if self._open == kind:
            return []
        ended = self._closed()
        self._open = kind
        self._count += 1
        start = _event("content_block_start", index=self._count - 1, content_block=block)
        return [*ended, start]

    def _closed(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open = None
        return [_event("content_block_stop", index=self._count - 1)]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._count - 1, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return event(json.dumps({"type": kind, **fields}, ensure_ascii=False), kind)


def _input(arguments: str) -> dict[str, Any]:
    """Arguments as an object; what was cut off is kept as text, as Anthropic's guides do."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {"INVALID_JSON": arguments}
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}
