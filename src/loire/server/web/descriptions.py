"""What routes answer, as the API's description has it."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from loire.server.web.errors import ErrorBody
from loire.server.web.json_answer import JsonAnswer

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is mistaken; see param"},
    "5XX": {"model": ErrorBody, "description": "The engine loads, has stopped, or gave up"},
}
"""For the API's description: what a route answers when it does not succeed."""


def json_response(body: BaseModel) -> JsonAnswer:
    """A successful answer."""
    return JsonAnswer(body.model_dump_json())


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
