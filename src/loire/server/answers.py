"""What the answers of both completion routes have in common: ids, heads of chunks, logprobs."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Response
from pydantic import BaseModel

from loire import __version__
from loire.base.outputs import PositionLogprobs
from loire.server.errors import ErrorBody
from loire.server.generation import Generation
from loire.server.sse import event

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write; the value is OpenAI's."""

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is mistaken; see param"},
    "5XX": {"model": ErrorBody, "description": "The engine loads, has stopped, or gave up"},
}
"""For the API's description: what a route answers when it does not succeed."""


class AnswerHead:
    """Identity of an answer: the fields that all of its chunks repeat."""

    def __init__(self, prefix: str, model: str) -> None:
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.system_fingerprint = f"loire-{__version__}"

    def fields(self) -> dict[str, Any]:
        """The fields by name."""
        return dict(vars(self))


class ChunkWriter:
    """Writes the events of a stream: what all of them repeat is serialised once."""

    def __init__(self, head: AnswerHead, kind: str, *, include_usage: bool) -> None:
        self._head = json.dumps({**head.fields(), "object": kind})[:-1]
        # With include_usage, OpenAI's chunks have a usage of null before the last one.
        self._tail = ', "usage": null}' if include_usage else "}"

    def chunk(self, choices: Sequence[dict[str, Any]]) -> bytes:
        """An event with what is new."""
        news = json.dumps(choices, ensure_ascii=False)
        return event(f'{self._head}, "choices": {news}{self._tail}')

    def usage(self, generation: Generation) -> bytes:
        """The last event, of its own, with the usage."""
        return event(
            f'{self._head}, "choices": [], "usage": {generation.usage.model_dump_json()}}}'
        )


def json_response(body: BaseModel) -> Response:
    """A successful answer."""
    return Response(body.model_dump_json(), media_type="application/json")


def stream_description(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """For the API's description: with "stream": true the answer is a stream of such chunks."""
    schema = chunk.model_json_schema()
    # References would point into this schema, but are resolved from the root of the document.
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {200: {"content": {"text/event-stream": {"schema": schema}}}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with its references replaced by what they point to."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def likeliest(position: PositionLogprobs, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens of a position and their log-probabilities, best first."""
    ranked = sorted(position.items(), key=lambda item: (-item[1].logprob, item[1].rank))
    return [(token_id, finite(entry.logprob)) for token_id, entry in ranked[:count]]


def finite(logprob: float) -> float:
    """A log-probability that JSON can write."""
    return max(logprob, LOWEST_LOGPROB)
