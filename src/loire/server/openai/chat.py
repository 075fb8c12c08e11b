"""POST /v1/chat/completions."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from loire.base.errors import RequestError
from loire.base.outputs import PositionLogprobs
from loire.base.outputs import ToolCall as CallOfTool
from loire.engine.answers import collect
from loire.engine.dialogue import Turn, begin_turn
from loire.server.openai.answers import (
    AnswerHead,
    ChunkWriter,
    finite,
    likeliest,
    shown_prompt,
    usage_of,
    whole_answer,
)
from loire.server.openai.chat_protocol import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
)
from loire.server.openai.content_logprobs import ContentPositions
from loire.server.openai.custom_tools import (
    ClientEvent,
    CustomCalls,
    CustomCallStarted,
    CustomInput,
    input_text,
)
from loire.server.openai.tools_protocol import CustomCall, CustomToolCall, FunctionCall, ToolCall
from loire.server.serving.answer_bytes import check_answer, logprob_shares
from loire.server.serving.client import CallClient, admit
from loire.server.serving.generation import Choice, Generation
from loire.server.web.connection import while_connected
from loire.server.web.descriptions import ERROR_RESPONSES, stream_description
from loire.server.web.ignored import note_ignored
from loire.server.web.json_body import JsonRoute
from loire.server.web.sse import EventStream
from loire.text.tokenizer import Tokenizer
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

_OPENAI_NAMES = {"prompt": "messages", "logprobs": "top_logprobs"}


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=ERROR_RESPONSES | stream_description(ChatCompletionChunk),
)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """The next message of a conversation."""
    client = admit(request, body.model)
    # Off the event loop: a long conversation takes a while to render and tokenize.
    turn = await client.prepare(request, lambda: turn_of(client, body))
    for name in turn.ignored:
        note_ignored(name)
    answer = ChatAnswer(body, turn, Generation(client, [turn.submission]))
    if body.stream:
        return EventStream(answer.events())
    await while_connected(request.receive, answer.generation.run())
    return await whole_answer(answer.generation, answer.whole)


def turn_of(client: CallClient, body: ChatCompletionRequest) -> Turn:
    """The request of a conversation. Not for the event loop. Raises RequestError."""
    try:
        turn = begin_turn(
            client.frontend,
            client.next_id(),
            body.conversation(),
            body.sampling_params(),
            origin=client.origin(body.cache_salt, body.priority),
        )
        check_answer(logprob_shares([turn.submission], streams=body.stream))
        return turn
    except RequestError as error:
        error.param = _OPENAI_NAMES.get(error.param or "", error.param)
        if error.param == "structured_outputs":
            error.call_field(body.structure_field)
        if error.param == "max_tokens" and body.max_completion_tokens is not None:
            error.param = "max_completion_tokens"
        raise


class ChatAnswer:
    """Puts what the engine generates into the form of the chat API."""

    def __init__(self, body: ChatCompletionRequest, turn: Turn, generation: Generation) -> None:
        self.generation = generation
        self._submission = turn.submission
        self._readers = [turn.reader() for _ in generation.choices]
        self._custom = [CustomCalls(body.custom_names) for _ in generation.choices]
        tokenizer, at_once = generation.frontend.tokenizer, turn.thinking == "none"
        self._positions = [
            ContentPositions(tokenizer, begins_at_once=at_once) for _ in generation.choices
        ]
        self._body = body
        self._head = AnswerHead("chatcmpl", body.model)

    def whole(self) -> dict[str, Any]:
        """The answer, when everything has come: a ChatCompletion."""
        answer: dict[str, Any] = {
            **self._head.fields(),
            "object": "chat.completion",
            "choices": map(self._whole_choice, self.generation.choices),
            "usage": usage_of(self.generation).model_dump(),
        }
        if self._body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = shown_prompt(self.generation.choices[0].prompt_logprobs)
        if self._body.return_token_ids:
            answer["prompt_token_ids"] = self._prompt_token_ids()
        return answer

    def _prompt_token_ids(self) -> list[int] | None:
        request = self._submission.request
        return list(request.prompt_token_ids) if self._body.return_token_ids else None

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes: each item one write, with one chunk per choice that has news."""
        options = self._body.stream_options
        writer = ChunkWriter(self._head, "chat.completion.chunk", self.generation, options)
        prompt = self._prompt_token_ids()
        beside: dict[str, Any] = {} if prompt is None else {"prompt_token_ids": prompt}
        async with aclosing(self.generation.news()) as news:
            async for choices in news:
                deltas = [delta for choice in choices for delta in self._deltas(choice)]
                first = writer.chunk(deltas[0], **beside)
                beside = {}
                yield first + b"".join(map(writer.chunk, deltas[1:]))
        if writer.tells_usage:
            yield writer.usage()

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        assert choice.finish_reason is not None, "every choice ends"
        taken = choice.take()
        reader = self._readers[choice.index]
        events = reader.read(taken.text, choice.finish_reason)
        answer = collect(events)
        calls = [self._whole_call(call) for call in answer.tool_calls]
        logprobs = self._logprobs(choice, taken.logprobs, events)
        if logprobs is not None:
            logprobs["content"] = iter(logprobs["content"])
        message = AnswerMessage(
            content=None if calls and not answer.content else answer.content,
            reasoning_content=answer.reasoning or None,
            tool_calls=calls or None,
        )
        whole: dict[str, Any] = {
            "index": choice.index,
            "message": message.model_dump(),
            "logprobs": logprobs,
            "finish_reason": reader.finish_reason(choice.finish_reason),
        }
        if self._body.return_token_ids:
            whole["token_ids"] = taken.token_ids
        return whole

    def _whole_call(self, call: CallOfTool) -> ToolCall | CustomToolCall:
        if call.name in self._body.custom_names:
            custom = CustomCall(name=call.name, input=input_text(call.arguments))
            return CustomToolCall(id=call.id, custom=custom)
        function = FunctionCall(name=call.name, arguments=call.arguments)
        return ToolCall(id=call.id, function=function)

    def _deltas(self, choice: Choice) -> list[dict[str, Any]]:
        """Chunks of a choice's news; the first one of a choice only says who speaks.

        The log-probabilities of the news are with the last of them, beside the finish reason.
        """
        deltas = []
        if not choice.begun:
            deltas.append(_delta(choice.index, {"role": "assistant", "content": ""}))
        taken = choice.take()
        reader, finish_reason = self._readers[choice.index], choice.finish_reason
        events = reader.read(taken.text, finish_reason)
        told = self._custom[choice.index].read(events)
        news = [delta for event in told if (delta := _news(event))]
        deltas += [_delta(choice.index, delta) for delta in news[:-1]]
        deltas.append(
            _delta(
                choice.index,
                news[-1] if news else {},
                self._logprobs(choice, taken.logprobs, events),
                None if finish_reason is None else reader.finish_reason(finish_reason),
            )
        )
        if self._body.return_token_ids:
            deltas[-1]["token_ids"] = taken.token_ids
        return deltas

    def _logprobs(
        self, choice: Choice, positions: Sequence[PositionLogprobs], events: Sequence[AnswerEvent]
    ) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        of_content = self._positions[choice.index].add(positions, events)
        return {"content": [self._position(position) for position in of_content], "refusal": None}

    def _position(self, position: PositionLogprobs) -> dict[str, Any]:
        tokenizer = self.generation.frontend.tokenizer
        chosen, entry = next(iter(position.items()))
        top = likeliest(position, self._body.top_logprobs)
        return {
            **_token(tokenizer, chosen, finite(entry.logprob)),
            "top_logprobs": [_token(tokenizer, *pair) for pair in top],
        }


def _news(event: ClientEvent) -> dict[str, Any]:
    """An event in the form of a delta; empty for what OpenAI's form has no words for."""
    match event:
        case ContentDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
        case CallStarted(index, call_id, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        case ArgumentsDelta(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case CustomCallStarted(index, call_id, name):
            custom = {"name": name, "input": ""}
            call = {"index": index, "id": call_id, "type": "custom", "custom": custom}
            return {"tool_calls": [call]}
        case CustomInput(index, text):
            return {"tool_calls": [{"index": index, "custom": {"input": text}}]}
        case CallEnded() | CallBroken():
            return {}


def _delta(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": logprob,
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
