"""Errors in the form the OpenAI API gives them, whatever went wrong.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

400 is a mistake in the request, 401 a missing key, 403 a key that does not open this route,
404 an unknown model or route, 413 a body that is too large, 429 a limit that was reached,
500 a request that the engine could not finish, 503 an engine that loads or has stopped,
504 a request that was not finished in time.
"""

import json
from collections.abc import Sequence
from reprlib import Repr
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from loire.base.errors import (
    BusyError,
    EngineError,
    LoireError,
    PromptTooLongError,
    RequestError,
    RequestTimeoutError,
)
from loire.server.web.api_error import ApiError as ApiError
from loire.server.web.call import get_call
from loire.server.web.routes import dialect_of

UNION_TAG = "as "
"""Marks the parts of a validation path that name a member of a union, not a field."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_SHOWN = 80
_LONGEST = 300
"""Characters of the place of a mistake."""
"""Characters of a bad value that are repeated in the message."""


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class ClientDisconnectedError(LoireError):
    """The client went away: nobody is there to read an answer."""


def describe(error: Exception) -> tuple[int, ErrorBody]:
    """The status and the body that answer an error."""
    match error:
        case ApiError():
            return _answer(error.status, str(error), param=error.param, code=error.code)
        case PromptTooLongError():
            return _answer(400, str(error), param=error.param, code="context_length_exceeded")
        case RequestError():
            return _answer(400, str(error), param=error.param)
        case BusyError():
            return _answer(429, str(error), code="queue_full")
        case RequestTimeoutError():
            return _answer(504, str(error), code="request_timeout")
        case EngineError():
            return _answer(503, str(error), code="engine_unavailable")
        case RequestValidationError():
            message, param, code = _first_mistake(error.errors())
            return _answer(400, message, param=param, code=code)
        case HTTPException():
            return _answer(error.status_code, str(error.detail))
    return _answer(500, f"an internal error ended this request: {type(error).__name__}")


def error_text(error: Exception, path: str) -> tuple[int, str]:
    """Status and body, as JSON, that answer an error in the form of the API that has the path."""
    status, body = describe(error)
    content = body.model_dump()
    if dialect_of(path) == "anthropic":
        content = _in_anthropic_form(status, body)
    # Plain ASCII, because a message may repeat text that has no UTF-8 form.
    return status, json.dumps(content)


def error_response(error: Exception, path: str) -> Response:
    """An error as an HTTP response."""
    status, content = error_text(error, path)
    headers = error.headers if isinstance(error, (ApiError, HTTPException)) else None
    if isinstance(error, BusyError):
        headers = {"Retry-After": "1"}
    return Response(content, status, headers=headers, media_type="application/json")


def add_error_handlers(app: FastAPI) -> None:
    """Let every exception that reaches the app leave it in the OpenAI form."""

    async def answer(request: Request, error: Exception) -> Response:
        get_call(request.scope).error_code = describe(error)[1].error.code
        return error_response(error, request.url.path)

    async def nobody_reads(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    for kind in (LoireError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
    for kind in (ClientDisconnectedError, ClientDisconnect):  # the latter: within its body
        app.add_exception_handler(kind, nobody_reads)


def _in_anthropic_form(status: int, body: ErrorBody) -> dict[str, Any]:
    """https://docs.anthropic.com/en/api/errors; the field that is wrong is in the message."""
    fallback = "invalid_request_error" if status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(status, fallback)
    return {"type": "error", "error": {"type": kind, "message": body.error.message}}


def _answer(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> tuple[int, ErrorBody]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    detail = ErrorDetail(message=message, type=kind, param=param, code=code)
    return status, ErrorBody(error=detail)


def _first_mistake(errors: Sequence[Any]) -> tuple[str, str | None, str | None]:
    """Message, field and code of the first of pydantic's errors."""
    error = errors[0]
    kind, context = error["type"], error.get("ctx", {})
    if kind == "json_invalid":
        return f"the body is not valid JSON: {context.get('error', error['msg'])}", None, None
    path = _path([*error["loc"][1:], *context.get("path", ())])
    if kind == "string_unicode":
        where = path or "the body"
        return f"{where} holds half of a surrogate pair, which is no Unicode text", path, None
    if path is None and kind != "told":
        needed = "the body must be a JSON object, sent with Content-Type: application/json"
        return needed, None, None
    match kind:
        case "unknown":
            return f"unknown field {path!r}: remove it", path, "unknown_field"
        case "unsupported":
            return error["msg"], path, "unsupported_field"
        case "missing":
            return f"{path!r} is required", path, "missing_field"
        case "told":
            return error["msg"], path, None
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{path}: {message}, but is {_shorten(error['input'])}", path, None


def _path(parts: Sequence[str | int]) -> str | None:
    """messages[0].content from ("messages", 0, "as text", "content"); None if nothing is left."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(UNION_TAG) and part != "[key]":
            path += f".{part[:_LONGEST]}" if path else part[:_LONGEST]
        if len(path) > _LONGEST:
            return f"{path[:_LONGEST]}..."
    return path or None


_REPR = Repr()
_REPR.maxlist = _REPR.maxdict = _REPR.maxtuple = 4
_REPR.maxlevel = 2


def _shorten(value: object) -> str:
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!r}... ({len(value)} characters)"
    # Never the whole of a large value: it may be megabytes.
    text = repr(value) if isinstance(value, str) else _REPR.repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
