"""Bodies of JSON, read beside the event loop: whoever sends a large one waits alone.

FastAPI reads and validates a body on the event loop, where 12 MB of wrong token ids stop every
stream for many seconds. A JsonRoute reads it first: bounded in bytes (after decompression, too) and
in values, parsed and validated on a thread if it is large, few large ones at a time.
"""

import asyncio
import re
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from loire.server.web.routes import route_of

SMALL_BYTES = 64 * 1024
"""Up to this size a thread costs more than the work."""
MAX_LARGE = 2
"""Large bodies that are parsed, or whose texts are tokenized, at a time."""
MAX_VALUES = 300_000
"""Of one body, lists and objects among them. Reading one holds Python's lock for 0.1 us, and the
longest that anybody else may wait is 0.1 s. For each token of the window there may be two more."""
MAX_STRINGS = 50_000
"""Of one body, names of fields among them: each takes 0.7 us. One more for four tokens."""
MAX_LISTS = 50_000
"""Of one body, objects among them, and brackets within texts: each takes 1 us. As MAX_STRINGS."""
MAX_ESCAPES = 2_000_000
"""Backslashes in one body, each of which takes 10 ns. Four more for each token of the window."""
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 47}
"""Window bits for zlib: with the header of gzip; of either."""

_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
ESCAPE_BYTES = len("\\ud800")
MAX_ESCAPED_QUOTES = 1000
"""Of a text with half a character, between which and its beginning is looked for."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """A route whose JSON body is read before FastAPI looks at it."""

    def get_route_handler(self) -> Handler:
        """The handler, which gets the body as a model that is validated already."""
        handle = super().get_route_handler()
        model = None if self.body_field is None else self.body_field.field_info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return handle

        async def read_first(request: Request) -> Response:
            if not _is_json(request) or not (raw := await request.body()):
                return await handle(request)
            return await handle(_ReadRequest(request, await _read(request, raw, model)))

        return read_first


class _ReadRequest(Request):
    """A request whose body was read; the bytes of it are let go."""

    def __init__(self, request: Request, body: BaseModel) -> None:
        super().__init__(request.scope, request.receive)
        self._model = body

    async def body(self) -> bytes:
        """Something: what it was is in json()."""
        return b"{}"

    async def json(self) -> Any:
        """The validated body: pydantic takes a model of its own as it is."""
        return self._model


async def _read(request: Request, raw: bytes, model: type[BaseModel]) -> BaseModel:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    max_bytes = route_of(request.url.path).max_body_bytes
    window = request.app.state.served.window
    if encoding == "identity" and len(raw) <= SMALL_BYTES:
        return _parse(raw, model, window)
    async with _large_bodies(request):
        return await asyncio.to_thread(
            lambda: _parse(_decompressed(raw, encoding, max_bytes), model, window)
        )


def _large_bodies(request: Request) -> asyncio.Semaphore:
    """The places of an application for large bodies."""
    state = request.app.state
    if not hasattr(state, "large_bodies"):
        state.large_bodies = asyncio.Semaphore(MAX_LARGE)
    places: asyncio.Semaphore = state.large_bodies
    return places


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def _decompressed(raw: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body itself. Raises HTTPException: 415 for an encoding that is not known, 413 beyond
    max_bytes, 400 for what is damaged."""
    if encoding == "identity":
        return raw
    if encoding not in _ENCODINGS:
        known = ", ".join(name for name in _ENCODINGS if not name.startswith("x-"))
        raise HTTPException(
            415,
            f"the body's Content-Encoding {encoding[:40]!r} is not supported: send it as it is, or "
            f"in {known}",
        )
    stream = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        body = stream.decompress(raw, max_bytes + 1)
    except zlib.error as error:
        raise HTTPException(400, f"the body is no valid {encoding}: {error}") from error
    if len(body) > max_bytes:
        raise HTTPException(
            413, f"the body is larger than {max_bytes:,} bytes once it is decompressed"
        )
    if not stream.eof or stream.unused_data:
        raise HTTPException(400, f"the body is no whole {encoding}: it ends in its middle, or late")
    return body


def _parse(raw: bytes, model: type[BaseModel], window: int) -> BaseModel:
    """window: of the model, in tokens; what may be in a body follows from it."""
    num_lists = raw.count(b"[") + raw.count(b"{")
    num_values = raw.count(b",") + num_lists + 1
    num_escapes = raw.count(b"\\")
    num_strings = (raw.count(b'"') - (raw.count(b'\\"') if num_escapes else 0)) // 2
    for number, what, most in (
        (num_values, "values", MAX_VALUES + 2 * window),
        (num_lists, "lists and objects", MAX_LISTS + window // 4),
        (num_strings, "texts and names of fields", MAX_STRINGS + window // 4),
        (num_escapes, "escaped characters", MAX_ESCAPES + 4 * window),
    ):
        if number > most:
            # 400, as OpenAI's for lists that are too long; 413 is for bytes.
            raise HTTPException(
                400,
                f"the body has about {number:,} {what}, but at most {most:,} are read: send fewer "
                f"at a time",
            )
    try:
        return model.model_validate(_from_json(raw))
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        raise RequestValidationError(
            [{**mistake, "loc": ("body", *mistake["loc"])} for mistake in mistakes]
        ) from None


def _from_json(raw: bytes) -> Any:
    """Exact integers of any size, no NaN, text that is Unicode; else RequestValidationError."""
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        reason = str(error)
    place = _place_of_half_character(raw, reason)
    kind = "json_invalid" if place is None else "string_unicode"
    mistake = {"type": kind, "loc": ("body", *(place or ())), "msg": reason, "input": None}
    raise RequestValidationError([{**mistake, "ctx": {"error": reason}}])


def _place_of_half_character(raw: bytes, reason: str) -> tuple[str | int, ...] | None:
    """Where text holds half of a surrogate pair; None if the body is no JSON for other reasons.

    reason: that the parser stopped. What it had read until then is parsed once more.
    """
    if "line 1 " not in reason:  # a byte for a byte, so that it stops at the same one
        raw = raw.replace(b"\n", b" ")
        try:
            from_json(raw, allow_inf_nan=False)
        except ValueError as error:
            reason = str(error)
    column = re.search(r"escape at line 1 column (\d+)$", reason)
    if column is None:
        return None
    end = int(column[1])
    if not _HALF_CHARACTER.search(raw, max(0, end - 2 * ESCAPE_BYTES), end + 1):
        return None
    begin = raw.rfind(b'"', 0, end - 1)
    for _ in range(MAX_ESCAPED_QUOTES):
        if not _is_escaped(raw, begin):
            break
        begin = raw.rfind(b'"', 0, begin)
    try:
        return _place_of_last(from_json(raw[:begin] + b"null", allow_partial=True))
    except ValueError:  # it is the name of a value
        named = raw[:begin] + b'"\\u0000 \\u0000":null'
        return _place_of_last(from_json(named, allow_partial=True))[:-1]


def _is_escaped(raw: bytes, place: int) -> bool:
    before = raw[max(0, place - MAX_ESCAPED_QUOTES) : place]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def _place_of_last(value: Any) -> tuple[str | int, ...]:
    place: tuple[str | int, ...] = ()
    while value and isinstance(value, (list, dict)):
        last = len(value) - 1 if isinstance(value, list) else next(reversed(value))
        place, value = (*place, last), value[last]
    return place
