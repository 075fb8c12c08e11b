"""/v1/responses: create, stream, retrieve, delete, and going on from an earlier one."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from loire.base.errors import RequestError
from loire.engine.dialogue import Conversation, Turn, begin_turn
from loire.server.access.caller import get_caller
from loire.server.openai.answers import usage_of
from loire.server.openai.responses.answer import (
    Deleted,
    IncompleteDetails,
    InputDetails,
    InputItems,
    ResponseBody,
    ResponsesUsage,
)
from loire.server.openai.responses.events import ResponseOutput
from loire.server.openai.responses.items import Item, ItemReference, as_messages
from loire.server.openai.responses.request import ResponsesRequest
from loire.server.openai.responses.store import ResponseStore, StoredResponse
from loire.server.serving.client import CallClient, admit
from loire.server.serving.generation import Generation
from loire.server.web.connection import while_connected
from loire.server.web.descriptions import ERROR_RESPONSES, json_response
from loire.server.web.errors import ApiError
from loire.server.web.ignored import note_ignored
from loire.server.web.json_answer import JsonAnswer
from loire.server.web.json_body import JsonRoute
from loire.server.web.sse import EventStream
from loire.server.web.strict import MAX_NAME

router = APIRouter(route_class=JsonRoute, prefix="/v1/responses", responses=ERROR_RESPONSES)

_NAMES = {
    "prompt": "input",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
}
_ITEMS = TypeAdapter(list[Item])

Messages = Sequence[Mapping[str, Any]]


@router.post("", response_model=ResponseBody)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """A response; with "stream": true as events."""
    client = admit(request, body.model)
    store: ResponseStore = request.app.state.responses
    tenant = get_caller(request.scope).tenant

    def begin() -> tuple[Sequence[Item], Messages, Turn]:
        earlier = _earlier(store, body.previous_response_id, tenant)
        items = _resolved(body.items(), store, tenant)
        messages = [*earlier, *as_messages(items)]
        return items, messages, _submit(client, body, messages)

    # Off the event loop: a long conversation takes a while to find, to render and to tokenize.
    items, messages, turn = await client.prepare(request, begin)
    for name in turn.ignored:
        note_ignored(name)
    answer = ResponseAnswer(body, turn, Generation(client, [turn.submission]))

    async def keep(final: ResponseBody) -> None:
        if body.store:
            await asyncio.to_thread(
                lambda: store.put(final.id, _stored(tenant, final, messages, items))
            )

    if body.stream:
        return EventStream(answer.events(keep), done=b"")
    await while_connected(request.receive, answer.generation.run())
    final = answer.whole()
    await keep(final)
    return json_response(final)


@router.get("/{response_id}", response_model=ResponseBody)
async def retrieve_response(response_id: str, request: Request) -> Response:
    """A response that was stored."""
    store: ResponseStore = request.app.state.responses
    found = await asyncio.to_thread(store.body, response_id, get_caller(request.scope).tenant)
    if found is None:
        raise _not_found(response_id)
    return JsonAnswer(found)


@router.get("/{response_id}/input_items", response_model=InputItems)
async def list_input_items(
    response_id: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str, Query(max_length=MAX_NAME)] = "",
) -> Response:
    """What was sent for a response, the latest first."""
    store: ResponseStore = request.app.state.responses
    tenant = get_caller(request.scope).tenant

    def page() -> bytes:
        items = store.input(response_id, tenant)
        if items is None:
            raise _not_found(response_id)
        if order == "desc":
            items.reverse()
        if after:
            places = [place for place, item in enumerate(items) if _id_of(item) == after]
            if not places:
                raise ApiError(400, f"there is no item {after!r} in this response", param="after")
            items = items[places[0] + 1 :]
        shown = items[:limit]
        return msgspec.json.encode(
            {
                "object": "list",
                "data": shown,
                "first_id": _id_of(shown[0]) if shown else None,
                "last_id": _id_of(shown[-1]) if shown else None,
                "has_more": len(items) > limit,
            }
        )

    # Off the event loop: items may be megabytes.
    return JsonAnswer(await asyncio.to_thread(page))


@router.delete("/{response_id}")
async def delete_response(response_id: str, request: Request) -> Deleted:
    """Forget a response."""
    store: ResponseStore = request.app.state.responses
    tenant = get_caller(request.scope).tenant
    if not await asyncio.to_thread(store.delete, response_id, tenant):
        raise _not_found(response_id)
    return Deleted(id=response_id)


@router.post("/{response_id}/cancel", response_model=ResponseBody)
async def cancel_response(response_id: str, request: Request) -> Response:
    """Refused: only responses in the background can be cancelled, and there are none."""
    store: ResponseStore = request.app.state.responses
    if not await asyncio.to_thread(store.has, response_id, get_caller(request.scope).tenant):
        raise _not_found(response_id)
    raise ApiError(
        400,
        f"the response {response_id!r} has ended and was not made in the background: to end one "
        f"that is being made, close its connection",
        param="response_id",
    )


class _Known(msgspec.Struct):
    """What is read of an item."""

    id: str | None = None


def _id_of(item: msgspec.Raw) -> str | None:
    return msgspec.json.decode(item, type=_Known).id


def _not_found(response_id: str) -> ApiError:
    return ApiError(
        404,
        f"there is no response {response_id!r}: it was not stored, was deleted, or is too old",
        param="response_id",
        code="response_not_found",
    )


def _earlier(store: ResponseStore, previous_id: str, tenant: str) -> Messages:
    if not previous_id:
        return ()
    found = store.messages(previous_id, tenant)
    if found is None:
        raise ApiError(
            400,
            f"there is no response {previous_id!r} to go on from: it was not stored, was deleted, "
            f"or is too old",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return found


def _resolved(items: Sequence[Item], store: ResponseStore, tenant: str) -> list[Item]:
    """The items, references replaced by what they refer to."""
    found = store.items({item.id for item in items if isinstance(item, ItemReference)}, tenant)
    resolved: list[Item] = []
    for number, item in enumerate(items):
        if not isinstance(item, ItemReference):
            resolved.append(item)
            continue
        if item.id not in found:
            raise ApiError(
                400,
                f"there is no item {item.id!r} to refer to: its response was not stored, was "
                f"deleted, or is too old; send the item itself",
                param=f"input[{number}].id",
                code="item_not_found",
            )
        resolved += _ITEMS.validate_python([found[item.id]])
    return resolved


def _stored(
    tenant: str, final: ResponseBody, messages: Messages, items: Sequence[Item]
) -> StoredResponse:
    text = final.model_dump_json()
    whole = [*messages, *as_messages(_ITEMS.validate_python(final.output))]
    given = [
        {"id": f"item_{final.id}_{number}", **item.model_dump(exclude_unset=True)}
        for number, item in enumerate(items)
    ]
    outputs = {item["id"]: item for item in final.output}
    return StoredResponse(tenant, text, whole, outputs, given)


def _submit(client: CallClient, body: ResponsesRequest, messages: Messages) -> Turn:
    if body.instructions:
        messages = [{"role": "system", "content": body.instructions}, *messages]
    try:
        conversation = Conversation(
            messages=messages, tools=body.tool_use(), effort=body.reasoning.effort
        )
        return begin_turn(
            client.frontend,
            client.next_id(),
            conversation,
            body.sampling_params(),
            origin=client.origin(),
        )
    except RequestError as error:
        error.param = _NAMES.get(error.param or "", error.param)
        if error.param == "structured_outputs":
            error.call_field("text.format.schema")
        raise


class ResponseAnswer:
    """Puts what the engine generates into the form of the responses API."""

    def __init__(self, body: ResponsesRequest, turn: Turn, generation: Generation) -> None:
        self.generation = generation
        self._body = body
        self._reader = turn.reader()
        self._output = ResponseOutput(body.custom_names)
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self) -> ResponseBody:
        """The response, when everything has come."""
        [choice] = self.generation.choices
        text = choice.take().text
        self._output.add(self._reader.read(text, choice.finish_reason))
        self._output.close(complete=choice.finish_reason == "stop")
        return self._final()

    async def events(
        self, keep: Callable[[ResponseBody], Awaitable[None]]
    ) -> AsyncGenerator[bytes, None]:
        """The response as it comes. keep: called with the whole of it before its last event."""
        [choice] = self.generation.choices
        output = self._output
        begun = self._response("in_progress").model_dump()
        yield output.tell("response.created", response=begun) + output.tell(
            "response.in_progress", response=begun
        )
        async with aclosing(self.generation.news()) as news:
            async for _ in news:
                text = choice.take().text
                yield b"".join(output.add(self._reader.read(text, choice.finish_reason)))
        told = output.close(complete=choice.finish_reason == "stop")
        final = self._final()
        await keep(final)
        last = output.tell(f"response.{final.status}", response=final.model_dump())
        yield b"".join([*told, last])

    def _final(self) -> ResponseBody:
        [choice] = self.generation.choices
        return self._response("completed" if choice.finish_reason == "stop" else "incomplete")

    def _response(self, status: Literal["in_progress", "completed", "incomplete"]) -> ResponseBody:
        body, usage = self._body, usage_of(self.generation)
        params = self.generation.params
        cut = status == "incomplete"
        return ResponseBody(
            id=self._id,
            created_at=self._created,
            status=status,
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if cut else None,
            instructions=body.instructions or None,
            max_output_tokens=body.max_output_tokens,
            model=body.model,
            output=self._output.items if status != "in_progress" else [],
            parallel_tool_calls=body.parallel_tool_calls,
            previous_response_id=body.previous_response_id or None,
            store=body.store,
            temperature=params.temperature,
            text=body.text.model_dump(by_alias=True, exclude_unset=True) or _PLAIN_TEXT,
            tool_choice=body.tool_choice
            if isinstance(body.tool_choice, str)
            else body.tool_choice.model_dump(),
            tools=[tool.model_dump() for tool in body.tools],
            reasoning={"effort": body.reasoning.effort, "summary": None},
            truncation=body.truncation,
            # The least stands for 0.
            top_p=params.top_p if body.top_p is None else body.top_p,
            usage=None
            if status == "in_progress"
            else ResponsesUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details=InputDetails(
                    cached_tokens=usage.prompt_tokens_details.cached_tokens
                ),
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
            ),
            metadata=body.metadata,
        )


_PLAIN_TEXT = {"format": {"type": "text"}}
