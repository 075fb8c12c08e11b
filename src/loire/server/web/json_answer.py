"""Large answers as JSON: written and sent in pieces, so that nobody else waits for the whole."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

SENT_BYTES = 2**18
"""At a time: the client has taken most of what came before. So a call lasts until its client has
its answer, and what it holds is counted until then."""


def written(value: Mapping[str, Any]) -> str:
    """An object as JSON. An iterator in it is a list, each of whose items is written by itself:
    what is a single call of the library keeps all threads waiting."""
    return "".join(_pieces(value))


class JsonAnswer(Response):
    """A successful answer, of JSON that is written."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for place in range(0, len(self.body), SENT_BYTES):
            end = place + SENT_BYTES
            more, body = end < len(self.body), bytes(self.body[place:end])
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def large_answer(make: Callable[[], Mapping[str, Any]]) -> JsonAnswer:
    """An answer that is made, and written, beside the event loop. make: as written() takes it."""
    return JsonAnswer(await asyncio.to_thread(lambda: written(make()).encode()))


def _pieces(value: Mapping[str, Any]) -> Iterator[str]:
    before = "{"
    for name, entry in value.items():
        yield f"{before}{_whole(name)}:"
        if isinstance(entry, Iterator):
            yield from _items(entry)
        elif isinstance(entry, Mapping) and _has_iterators(entry):
            yield from _pieces(entry)
        else:
            yield _whole(entry)
        before = ","
    yield "}"


def _items(items: Iterator[Any]) -> Iterator[str]:
    before = "["
    for item in items:
        yield before
        if isinstance(item, Mapping) and _has_iterators(item):
            yield from _pieces(item)
        else:
            yield _whole(item)
        before = ","
    yield "[]" if before == "[" else "]"


def _has_iterators(value: Mapping[str, Any]) -> bool:
    return any(
        isinstance(entry, Iterator) or (isinstance(entry, Mapping) and _has_iterators(entry))
        for entry in value.values()
    )


def _whole(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
